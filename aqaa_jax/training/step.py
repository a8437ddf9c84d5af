"""One optimizer step over named loss terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from aqaa_jax.training.state import TrainState

# A loss function gives each term as (sum, count); terms are normalised once, globally, then weighted.
Terms = Mapping[str, tuple[jax.Array, jax.Array]]
LossFn = Callable[[Any, Any, jax.Array], Terms]


def total_loss(terms: Terms, weights: Mapping[str, float]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of the mean of every term; terms without a weight are reported only.

    A term that counts nothing adds nothing; its reported mean is NaN.
    """
    unknown = set(weights) - set(terms)
    if unknown:
        raise ValueError(f"loss weights {sorted(unknown)} name no term; the terms are {sorted(terms)}")
    means = {name: value / jnp.maximum(count, 1.0) for name, (value, count) in terms.items()}
    reported = {name: jnp.where(terms[name][1] > 0, mean, jnp.nan) for name, mean in means.items()}
    return sum((weights[n] * means[n] for n in weights), jnp.zeros(())), reported


def make_train_step(
    loss_fn: LossFn,
    weights: Mapping[str, float],
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.0,
    places: Any = None,
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """``step(state, batch, key) -> (state, metrics)``, jitted, the old state donated.

    ``places`` are the shardings of the state, which goes in and comes out with them (``partition.state_shardings``).
    A step whose gradient is not finite leaves model and optimizer as they were; ``skipped`` is then 1.
    """

    def step(state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(key, state.step)

        def objective(model: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            return total_loss(loss_fn(model, batch, key), weights)

        (loss, means), grads = jax.value_and_grad(objective, has_aux=True)(state.model)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(loss)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.model)
        model = optax.apply_updates(state.model, updates)
        model, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (model, opt_state), (state.model, state.opt_state)
        )
        average = state.ema
        if average is not None:
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            average = jax.tree.map(lambda a, m: decay * a + (1 - decay) * m, average, model)
        metrics = {**means, "loss": loss, "grad_norm": norm, "skipped": 1.0 - finite.astype(jnp.float32)}
        return TrainState(state.step + 1, model, opt_state, average), metrics

    if places is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(step, donate_argnums=0, in_shardings=(places, None, None), out_shardings=(places, None))
