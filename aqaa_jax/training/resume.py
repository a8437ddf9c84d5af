"""Where a run goes on from: the newest sound checkpoint, or behind the steps that spoilt it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from aqaa_jax.checkpoint.store import Store, set_damaged_aside
from aqaa_jax.sharding import partition
from aqaa_jax.sharding.rules import Rules
from aqaa_jax.training import distributed
from aqaa_jax.training.config import LoopConfig
from aqaa_jax.training.guard import Guard, after_rollback, new_guard
from aqaa_jax.training.state import TrainState

CHECKPOINTS = "checkpoints"


def open_store(run_dir: Path, loop: LoopConfig, say: Callable[[str], None]) -> Store:
    """The checkpoints of a run, damaged ones set aside with a line for each. Opened by all processes together."""
    if distributed.first():
        for step, why, where in set_damaged_aside(run_dir / CHECKPOINTS):
            say(f"WARNING: checkpoint {run_dir / CHECKPOINTS / str(step)} is damaged ({why}); moved to {where}")
    distributed.together("checkpoints looked at")
    store = Store(
        run_dir / CHECKPOINTS, keep=loop.keep, period=loop.save_every, every=loop.keep_every, best=loop.keep_best
    )
    latest = store.latest() or 0
    if latest != (expected := distributed.of_first(latest)):
        raise ValueError(
            f"{run_dir / CHECKPOINTS}: process {distributed.process()} sees step {latest} and the first one {expected};"
            " expected a folder that all processes share"
        )
    return store


class States:
    """The states that a run can begin from, each array born or read in its pieces; ``places`` are their shardings.

    ``begin(start)`` makes a new state, ``start`` is the model to go on from, or None.
    """

    def __init__(self, begin: Callable[[Any], TrainState], start: Any, mesh: Any, table: Rules, store: Store):
        self._begin, self._start, self._store = begin, start, store
        abstract = jax.eval_shape(begin, start)
        self.places = partition.state_shardings(abstract, abstract.model, mesh, table)
        self._like = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, self.places
        )

    def new(self) -> TrainState:
        return jax.jit(self._begin, out_shardings=self.places)(self._start)

    def at(self, step: int | None) -> TrainState:
        """The state of a saved step; a new one for None. A checkpoint from before there were guards gets a new one."""
        if step is None:
            return self.new()
        guard = jax.jit(new_guard, out_shardings=self.places.guard)()
        return self._store.restore(step, self._like, self._like._replace(guard=guard))


def behind(
    tripped: TrainState, states: States, store: Store, loop: LoopConfig, adjust: Callable[[TrainState, int], TrainState]
) -> tuple[TrainState, str]:
    """The state to go on with after the guard of ``tripped`` has tripped, and what to say.

    It is that of the last checkpoint at a multiple of ``save_every`` before the skipped steps, so that it is the same
    wherever the run was interrupted, or a new one. Its step is the one behind the skipped steps; ``adjust`` is called
    for each that is left out. Raises ``FloatingPointError`` when the run does not get on.
    """
    trip = cast(Guard, tripped.guard)
    first = int(tripped.step) - int(trip.streak)
    following = first + loop.guard.patience
    good = max((s for s in store.steps() if s <= first and s % loop.save_every == 0), default=None)
    state = states.at(good)
    guard = after_rollback(trip, cast(Guard, state.guard), loop.guard, loop.save_every)
    for step in range(good or 0, following):
        state = adjust(state, step)
    numbers = jax.device_get((guard, np.int32(following)))
    guard, step = jax.tree.map(_placed, numbers, (states.places.guard, states.places.step))
    came = f"checkpoint {good}" if good is not None else "the beginning"
    return state._replace(step=step, guard=guard), (
        f"steps {first + 1} to {following} were skipped: back to the weights of {came}, on with step {following + 1} "
        f"(rollback {int(guard.rollbacks)} of {loop.guard.rollbacks})"
    )


def _placed(value: Any, place: Any) -> jax.Array:
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, place, lambda index: value[index])
