"""What a run owns: step, model, optimizer state, averaged model, guard."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from aqaa_jax.training.guard import Guard, new_guard


class TrainState(NamedTuple):
    """A pytree; everything in it is saved and restored."""

    step: jax.Array
    model: Any
    opt_state: Any
    ema: Any | None
    guard: Guard | None = None  # none: only what is not finite is skipped, and nobody counts


def init_state(model: Any, optimizer: optax.GradientTransformation, *, ema: bool) -> TrainState:
    average = jax.tree.map(jnp.copy, model) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(model), average, new_guard())


def averaged(state: TrainState) -> Any:
    """The model that a run gives: the averaged one where there is one."""
    return state.model if state.ema is None else state.ema
