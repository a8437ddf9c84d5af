"""Which steps are skipped, and when a run has to go back: decided on the device, remembered in the train state.

A step is skipped when its loss or gradient is not finite, or far above the running level of the good ones. After
``patience`` of them in a row the guard trips: everything after is skipped too, so that it does not matter how late the
host looks. All of this is a function of the state, so a resumed run decides as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aqaa_jax.training.config import GuardConfig

QUIET = 0.01  # of the level: the least mean deviation that is believed
STREAK = "guard_streak"  # metrics of the guard begin with guard_
LIMITS = ("guard_loss_limit", "guard_grad_norm_limit")


class Guard(NamedTuple):
    """Few numbers on every device; ``level`` and ``spread`` are of loss and gradient norm."""

    streak: jax.Array  # int32: skipped steps since the last good one
    good: jax.Array  # int32: good steps since the last rollback
    rollbacks: jax.Array  # int32: with too few good steps between them
    seen: jax.Array  # int32: finite steps that level and spread were taken from
    level: jax.Array  # float32 [2]
    spread: jax.Array  # float32 [2]: mean deviation from the level


def new_guard() -> Guard:
    def count() -> jax.Array:
        return jnp.zeros((), jnp.int32)

    return Guard(count(), count(), count(), count(), jnp.zeros(2), jnp.zeros(2))


def judged(
    guard: Guard, loss: jax.Array, norm: jax.Array, config: GuardConfig
) -> tuple[Guard, jax.Array, dict[str, jax.Array]]:
    """The guard after a step, whether the step is good, and what the journal is told.

    Level and spread are running means of Huber's kind: a deviation counts for no more than the limit allows, so that
    one spike moves them little and a lasting change is followed.
    """
    values = jnp.stack([loss, norm]).astype(jnp.float32)
    finite = jnp.all(jnp.isfinite(values))
    good, limits = finite, {}
    level, spread, seen = guard.level, guard.spread, guard.seen
    if config.spike > 0:
        width = config.spike * jnp.maximum(spread, QUIET * jnp.abs(level))
        width = jnp.where(seen >= config.warmup, width, jnp.inf)
        good &= jnp.all(values <= level + width)
        limits = dict(zip(LIMITS, level + width, strict=True))
        rate = 1.0 / jnp.minimum(seen + 1, config.memory)
        away = jnp.where(seen == 0, values, jnp.clip(values - level, -width, width))
        level, spread = level + rate * away, spread + rate * (jnp.where(seen == 0, 0.0, jnp.abs(away)) - spread)
        seen = seen + 1
    tripped = (guard.streak >= config.patience) if config.patience else jnp.zeros((), bool)
    good &= ~tripped
    learnt = finite & ~tripped
    after = Guard(
        jnp.where(good, 0, guard.streak + 1),
        guard.good + good,
        guard.rollbacks,
        *(jnp.where(learnt, new, old) for new, old in zip((seen, level, spread), guard[3:], strict=True)),
    )
    return after, good, {STREAK: after.streak, **limits}


def after_rollback(tripped: Guard, restored: Guard, config: GuardConfig, enough: int) -> Guard:
    """The guard to go on with: its level is that of the restored state.

    Raises ``FloatingPointError`` when this is one rollback too many with fewer than ``enough`` good steps between.
    """
    before = int(tripped.rollbacks) if int(tripped.good) < enough else 0
    if before >= config.rollbacks:
        raise FloatingPointError(
            f"{config.patience} steps in a row were skipped after {before} rollbacks with fewer than {enough} good"
            " steps between them; the run does not get on: lower the learning rate, or look at the data and the journal"
        )
    count = lambda n: jnp.asarray(n, jnp.int32)  # noqa: E731
    return restored._replace(streak=count(0), good=count(0), rollbacks=count(before + 1))


def reason(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Why a step was skipped, with its figures, for the journal; ``metrics`` are on the host."""
    figures = {name: float(metrics[name]) for name in ("loss", "grad_norm")}
    limits = {name.removeprefix("guard_"): float(metrics[name]) for name in LIMITS if name in metrics}
    over = [name for name in figures if figures[name] > limits.get(f"{name}_limit", math.inf)]
    if not all(map(math.isfinite, figures.values())):
        why = "not finite"
    else:
        why = f"spike of {' and '.join(over)}" if over else "waiting for the rollback"
    shown = {**figures, **limits}
    return {"skipped": why, **{k: v if math.isfinite(v) else str(v) for k, v in shown.items()}}
