"""One optimizer step over named loss terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from aqaa_jax.sharding.manual import over_rows
from aqaa_jax.training.config import GuardConfig, LoopConfig
from aqaa_jax.training.guard import judged, new_guard
from aqaa_jax.training.optimizer import held
from aqaa_jax.training.state import TrainState

# A loss function gives each term as (sum, count); terms are normalised once, globally, then weighted.
Terms = Mapping[str, tuple[jax.Array, jax.Array]]
LossFn = Callable[[Any, Any, jax.Array], Terms]
# (updated model, model before, means of the terms) -> model: weights that no gradient moves.
Settle = Callable[[Any, Any, Mapping[str, jax.Array]], Any]


def total_loss(terms: Terms, weights: Mapping[str, float]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of the mean of every term; terms without a weight are reported only.

    A term that counts nothing adds nothing; its reported mean is NaN.
    """
    _check_weights(terms, weights)
    means = {name: value / jnp.maximum(count, 1.0) for name, (value, count) in terms.items()}
    reported = {name: jnp.where(terms[name][1] > 0, mean, jnp.nan) for name, mean in means.items()}
    return sum((weights[n] * means[n] for n in weights), jnp.zeros(())), reported


def totals(batches: Iterable[Terms]) -> dict[str, tuple[float, float]]:
    """(sum, count) of every scalar term over all batches, on the host."""
    sums: dict[str, tuple[float, float]] = {}
    for terms in batches:
        for name, (value, count) in terms.items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = (before[0] + float(value), before[1] + float(count))
    return sums


def make_train_step(
    loss_fn: LossFn,
    weights: Mapping[str, float],
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.0,
    microbatches: int = 1,
    by_rows: bool = False,
    rings: bool = False,
    settle: Settle | None = None,
    guard: GuardConfig | None = None,
    frozen: Sequence[str] = (),
    counted: str = "",
    places: Any = None,
    compiler_options: Mapping[str, str] | None = None,
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """``step(state, batch, key) -> (state, metrics)``, jitted, the old state donated.

    ``places`` are the shardings of the state, which goes in and comes out with them (``partition.state_shardings``).
    A step that ``guard`` finds bad, one whose gradient is not finite at least, leaves model and optimizer as they were;
    ``skipped`` is then 1. Weights whose names match a pattern of ``frozen`` are constants of the loss and stay as they
    are. ``counted`` is the term whose count is the metric ``tokens``: what was trained on.
    ``microbatches`` cuts the rows of the batch into so many parts, one after another in memory; the step is that of the
    whole batch, apart from the random numbers of a loss. With ``by_rows`` every device works on its own rows and
    gradients are added up over devices once, after the last part (``sharding/manual.py``), those of large weights with
    ``rings`` on their way round rings of devices; without, the compiler decides. ``settle`` has the last word on the
    model of a step that is not skipped; terms that are arrays are there for it, not for the metrics.
    ``compiler_options`` go to XLA. Raises ``ValueError`` if ``microbatches`` is not positive or does not divide the
    rows.
    """
    if microbatches < 1:
        raise ValueError(f"microbatches is {microbatches}; expected at least 1")
    gradients = _gradients(_with_constants(loss_fn, frozen), weights, microbatches)
    config = GuardConfig() if guard is None else guard

    def step(state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(key, state.step)
        add_up = partial(over_rows, gradients, rings=rings) if by_rows else partial(gradients, lambda x: x)
        grads, terms = add_up(state.model, batch, key)
        loss, means = total_loss(terms, weights)
        norm = optax.tree.norm(grads)
        after, good, watched = judged(new_guard() if state.guard is None else state.guard, loss, norm, config)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.model)
        model = optax.apply_updates(state.model, updates)
        model = model if settle is None else settle(model, state.model, means)
        model = held(model, state.model, frozen)
        means = {name: mean for name, mean in means.items() if mean.ndim == 0}
        model, opt_state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old), (model, opt_state), (state.model, state.opt_state)
        )
        average = None if state.ema is None else held(_average(state, model, ema_decay), model, frozen)
        metrics = {**means, "loss": loss, "grad_norm": norm, "skipped": 1.0 - good.astype(jnp.float32), **watched}
        if counted:
            metrics["tokens"] = terms[counted][1]
        return TrainState(
            state.step + 1, model, opt_state, average, after if state.guard is not None else None
        ), metrics

    compiled: Any = partial(jax.jit, step, donate_argnums=0, compiler_options=dict(compiler_options or {}) or None)
    return compiled() if places is None else compiled(in_shardings=(places, None, None), out_shardings=(places, None))


def _average(state: TrainState, model: Any, decay: float) -> Any:
    """The running mean of models, ``model`` the newest; it looks back less far at first."""
    kept = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    return jax.tree.map(lambda a, m: kept * a + (1 - kept) * m, state.ema, model)


def step_of(
    stage: Any,
    loop: LoopConfig,
    optimizer: optax.GradientTransformation,
    places: Any,
    compiler_options: Mapping[str, str] | None = None,
    *,
    frozen: Sequence[str] = (),
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """The step of a stage (``loop.Stage``) as its loop's config asks for it: what is trained with, and planned.

    ``frozen`` are the patterns of the optimizer's config.
    """
    return make_train_step(
        stage.loss,
        stage.weights,
        optimizer,
        ema_decay=loop.ema_decay,
        microbatches=loop.microbatches,
        by_rows=loop.by_rows,
        rings=loop.rings,
        settle=getattr(stage, "settle", None),
        guard=loop.guard,
        frozen=frozen,
        counted=getattr(stage, "counted", ""),
        places=places,
        compiler_options=compiler_options,
    )


def _with_constants(loss_fn: LossFn, frozen: Sequence[str]) -> LossFn:
    """``loss_fn`` through which no gradient flows to frozen weights: what only they need is not computed."""
    if not frozen:
        return loss_fn
    return lambda model, batch, key: loss_fn(held(model, jax.lax.stop_gradient(model), frozen), batch, key)


def _gradients(loss_fn: LossFn, weights: Mapping[str, float], microbatches: int) -> Callable[..., Any]:
    """``gradients, terms = f(total, model, batch, key)`` as ``over_rows`` takes it: sums over total counts.

    Counts are data: no gradient flows through them. They are known before the first backward pass, so the gradients of
    several terms need no sum of their own each.
    """

    def one(total: Any, model: Any, batch: Any, key: jax.Array, counts: Any = None) -> tuple[Any, Terms]:
        def sums(model: Any) -> tuple[Any, Any]:
            terms = loss_fn(model, batch, key)
            _check_weights(terms, weights)
            return {name: terms[name][0] for name in weights}, jax.lax.stop_gradient(terms)

        _, pull, terms = jax.vjp(sums, model, has_aux=True)
        counts = total({name: terms[name][1] for name in weights}) if counts is None else counts
        (grads,) = pull({name: weights[name] / jnp.maximum(counts[name], 1.0) for name in weights})
        return grads, terms

    def several(total: Any, model: Any, batch: Any, key: jax.Array) -> tuple[Any, Terms]:
        parts = jax.tree.map(lambda x: _split(x, microbatches), batch), jax.random.split(key, microbatches)

        def of(part: Any, counts: Any) -> tuple[Any, Terms]:
            return one(total, model, part[0], part[1], counts)

        # The compiler drops everything of this pass that the counts do not depend on, which is the model.
        counted = jax.lax.map(lambda p: {n: loss_fn(model, p[0], p[1])[n][1] for n in weights}, parts)
        counts = total(jax.tree.map(lambda x: jnp.sum(x, axis=0), counted))

        def add(sums: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, of(part, counts)), None

        shapes = jax.eval_shape(lambda p: of(p, counts), jax.tree.map(lambda x: x[0], parts))
        return jax.lax.scan(add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), parts)[0]

    return one if microbatches == 1 else several


def _split(x: jax.Array, many: int) -> jax.Array:
    """``many`` parts as a leading axis, every ``many``-th row in one, so that each has rows of every device."""
    if x.shape[0] % many:
        raise ValueError(f"{x.shape[0]} rows do not divide into {many} microbatches")
    return jnp.moveaxis(jnp.asarray(x).reshape(-1, many, *x.shape[1:]), 1, 0)


def _check_weights(terms: Terms, weights: Mapping[str, float]) -> None:
    if unknown := set(weights) - set(terms):
        raise ValueError(f"loss weights {sorted(unknown)} name no term; the terms are {sorted(terms)}")
