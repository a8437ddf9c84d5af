"""What a run owns: step, model, optimizer state, averaged model."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class TrainState(NamedTuple):
    """A pytree; everything in it is saved and restored."""

    step: jax.Array
    model: Any
    opt_state: Any
    ema: Any | None


def init_state(model: Any, optimizer: optax.GradientTransformation, *, ema: bool) -> TrainState:
    average = jax.tree.map(jnp.copy, model) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(model), average)
