"""One loop for every stage: what is trained, where it begins, and what is left at the end (docs/training.md).

The steps themselves, with all that happens between them, are ``run.Run``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from aqaa_jax.atomic import write_json
from aqaa_jax.sharding import partition
from aqaa_jax.sharding.chips import peak_of
from aqaa_jax.sharding.mesh import make_mesh
from aqaa_jax.sharding.rules import rules_of
from aqaa_jax.sharding.xla_flags import options_for
from aqaa_jax.training import distributed, executable
from aqaa_jax.training.config import LoopConfig, OptimizerConfig
from aqaa_jax.training.feed import Feed
from aqaa_jax.training.journal import Journal, Silence
from aqaa_jax.training.optimizer import make_optimizer
from aqaa_jax.training.progress import Progress, figures_line
from aqaa_jax.training.resume import States, open_store
from aqaa_jax.training.run import Run
from aqaa_jax.training.state import TrainState, averaged, init_state
from aqaa_jax.training.step import Terms, step_of


class Stage(Protocol):
    """What differs from one stage of the recipe to the next."""

    @property
    def name(self) -> str: ...

    @property
    def weights(self) -> Mapping[str, float]:
        """Loss term -> weight."""
        ...

    def init(self, key: jax.Array) -> Any:
        """The module to be trained."""
        ...

    def loss(self, model: Any, batch: Any, key: jax.Array) -> Terms:
        """Named terms as (sum, count)."""
        ...

    def batch(self, step: int) -> Any:
        """The batch of a step: a pure function of the step, so that a resumed run sees the same data.

        Called by a thread, some steps ahead.
        """
        ...

    def adjust(self, state: TrainState, step: int) -> TrainState:
        """Called before each step, for work outside the gradient (codebook revival); mostly the identity."""
        ...

    def evaluate(self, model: Any) -> dict[str, float]:
        """Figures on held-out data, at the end and every ``evaluate_every`` steps."""
        ...

    # A stage may also have
    #   settle     ``step.Settle``, for weights that no gradient moves
    #   samples    ``samples(model) -> samples.Samples``, what it makes, every ``sample_every`` steps
    #   counted    the term whose count is the number of trained tokens
    #   flops      ``flops(batch) -> float``, of the model for one step on a (placed) batch
    #   local      True if ``batch`` gives the rows of this process alone


def train(
    stage: Stage,
    run_dir: str | Path,
    loop: LoopConfig,
    optimizer_config: OptimizerConfig,
    *,
    start: Any | None = None,
    log: Callable[[str], None] | None = None,
    describe: Callable[[Mapping[str, str], tuple[str, int]], Mapping[str, Any]] | None = None,
) -> Any:
    """Train ``stage`` to ``loop.steps`` in ``run_dir`` (resuming what is there) and return the model.

    ``start`` is a model to go on from, in place of the stage's new one. On any mesh and in any number of processes
    (``loop.sharding``) the run is the same up to rounding, and may be resumed on another mesh. The averaged model is
    returned when ``ema_decay`` is set. SIGTERM saves and exits with code 143; running the same command again goes on
    from there with the same batches and random numbers, as it does after a kill. A damaged checkpoint is set aside and
    the one before it used. Raises ``FloatingPointError`` when the guard finds that the run does not get on.
    ``describe(flags, devices)`` is what the step is made of, for ``loop.executable``.
    """
    first = distributed.first()  # the one that tells and writes
    say = (log or _to_stderr) if first else (lambda text: None)
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    optimizer = make_optimizer(optimizer_config, loop.steps)
    key = jax.random.key(loop.seed)
    mesh, table = make_mesh(loop.sharding.mesh), rules_of(loop.sharding)
    store = open_store(run_dir, loop, say)
    latest = store.latest()
    if latest is not None:
        say(f"[{stage.name}] resuming from step {latest}")

    def begin(start: Any) -> TrainState:
        # A copy, because the step gives the memory of its state away.
        model = stage.init(jax.random.fold_in(key, 0)) if start is None else jax.tree.map(jnp.copy, start)
        return init_state(model, optimizer, ema=loop.ema_decay > 0)

    def make(step: int) -> Any:
        return partition.place_rows(stage.batch(step), mesh, table, local=getattr(stage, "local", False))

    states = States(begin, start, mesh, table, store)
    compiled = _step(stage, loop, optimizer, optimizer_config.frozen, states.places, mesh, describe)
    within = partial(partition.partitioning, mesh, table)
    with contextlib.ExitStack() as open_now:
        open_now.enter_context(contextlib.closing(store))  # whatever ends the run, a save in flight comes to its end
        journal = Journal(run_dir, latest or 0, tensorboard=loop.tensorboard) if first else Silence()
        open_now.enter_context(journal)
        progress = Progress(stage.name, loop, journal, say, peak_of(list(mesh.devices.flat)))
        feed = open_now.enter_context(contextlib.closing(Feed(make, loop.steps, loop.ahead)))
        run = Run(stage, loop, run_dir, store, states, progress, feed, within)
        state = run.steps(states.at(latest), lambda *given: compiled(*given, jax.random.fold_in(key, 1)))
        run.tell_best()
    model = averaged(state)
    figures = stage.evaluate(model)
    if figures and first:
        write_json(run_dir / "evaluation.json", figures)
        say(f"[{stage.name}] {figures_line(figures)}")
    return model


def _step(
    stage: Stage,
    loop: LoopConfig,
    optimizer: Any,
    frozen: Sequence[str],
    places: Any,
    mesh: Mesh,
    describe: Callable[..., Any] | None,
) -> Callable[..., Any]:
    """The step compiled on first use, with the options of the chip; or the one of ``loop.executable``."""
    devices = list(mesh.devices.flat)
    flags = options_for(devices, loop.xla)
    step = step_of(stage, loop, optimizer, places, flags, frozen=frozen)
    if not loop.executable:
        return step
    if describe is None:
        raise ValueError(f"stage {stage.name!r} runs no executable; expected loop.executable to be empty")
    return executable.saved_step(
        loop.executable, describe(flags, (devices[0].device_kind, len(devices))), step, devices
    )


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
