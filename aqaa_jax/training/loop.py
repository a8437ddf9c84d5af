"""The one place where time passes: steps, clock, saving, logging."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from aqaa_jax.atomic import write_json
from aqaa_jax.checkpoint.store import Store
from aqaa_jax.sharding import partition
from aqaa_jax.sharding.mesh import make_mesh
from aqaa_jax.sharding.rules import Rules, rules_of
from aqaa_jax.sharding.xla_flags import options_for
from aqaa_jax.training import distributed, executable
from aqaa_jax.training.config import LoopConfig, OptimizerConfig
from aqaa_jax.training.optimizer import make_optimizer
from aqaa_jax.training.state import TrainState, init_state
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
        """The batch of a step: a pure function of the step, so that a resumed run sees the same data."""
        ...

    def adjust(self, state: TrainState, step: int) -> TrainState:
        """Called before each step, for work outside the gradient (codebook revival); mostly the identity."""
        ...

    # A stage may have ``settle`` as well (``step.Settle``), for weights that no gradient moves.

    def evaluate(self, model: Any) -> dict[str, float]:
        """Figures on held-out data, once at the end."""
        ...


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
    from there with the same batches and random numbers.
    ``describe(flags, devices)`` is what the step is made of, for ``loop.executable``.
    """
    first = distributed.first()  # the one that tells and writes
    say = (log or _to_stderr) if first else (lambda text: None)
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    optimizer = make_optimizer(optimizer_config, loop.steps)
    key = jax.random.key(loop.seed)
    mesh, table = make_mesh(loop.sharding.mesh), rules_of(loop.sharding)
    store = Store(run_dir / "checkpoints", keep=loop.keep)
    latest = store.latest()
    if latest is not None:
        say(f"[{stage.name}] resuming from step {latest}")

    def begin(start: Any) -> TrainState:
        # A copy, because the step gives the memory of its state away.
        model = stage.init(jax.random.fold_in(key, 0)) if start is None else jax.tree.map(jnp.copy, start)
        return init_state(model, optimizer, ema=loop.ema_decay > 0)

    state, places = _placed_state(begin, start, mesh, table, store, latest)
    train_step = _step(stage, loop, optimizer, places, mesh, describe)
    interrupted = _on_sigterm()
    journal_path = run_dir / "metrics.jsonl" if first else Path(os.devnull)
    with partition.partitioning(mesh, table), journal_path.open("a") as journal:
        progress = _Progress(stage.name, int(state.step), loop, journal, say)
        for step in range(int(state.step), loop.steps):
            state = stage.adjust(state, step)
            batch = partition.place_rows(stage.batch(step), mesh, table)
            state, metrics = train_step(state, batch, jax.random.fold_in(key, 1))
            progress.after(step + 1, metrics)
            stopped = interrupted(step)
            if (step + 1) % loop.save_every == 0 or step + 1 == loop.steps or stopped:
                store.save(step + 1, state)
            if stopped:
                store.close()
                say(f"[{stage.name}] stopped by SIGTERM, saved at step {step + 1}")
                raise SystemExit(143)
    store.close()
    model = state.model if state.ema is None else state.ema
    figures = stage.evaluate(model)
    if figures and first:
        write_json(run_dir / "evaluation.json", figures)
        say(f"[{stage.name}] " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))
    return model


def _step(
    stage: Stage, loop: LoopConfig, optimizer: Any, places: Any, mesh: Mesh, describe: Callable[..., Any] | None
) -> Callable[..., Any]:
    """The step compiled on first use, with the options of the chip; or the one of ``loop.executable``."""
    devices = list(mesh.devices.flat)
    flags = options_for(devices, loop.xla)
    step = step_of(stage, loop, optimizer, places, flags)
    if not loop.executable:
        return step
    if describe is None:
        raise ValueError(f"stage {stage.name!r} runs no executable; expected loop.executable to be empty")
    return executable.saved_step(
        loop.executable, describe(flags, (devices[0].device_kind, len(devices))), step, devices
    )


def _placed_state(
    begin: Callable[[Any], TrainState], start: Any, mesh: Any, table: Rules, store: Store, latest: int | None
) -> tuple[TrainState, Any]:
    """The state of step ``latest``, or a new one, and its shardings: each array is born, or read, in its pieces."""
    abstract = jax.eval_shape(begin, start)
    places = partition.state_shardings(abstract, abstract.model, mesh, table)
    if latest is None:
        return jax.jit(begin, out_shardings=places)(start), places
    like = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, places)
    return store.restore(latest, like), places


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Progress:
    """Means since the last line, with rate and time left, to the terminal and to ``metrics.jsonl``."""

    def __init__(self, name: str, start: int, loop: LoopConfig, journal: Any, say: Callable[[str], None]):
        self.name, self.loop, self.journal, self.say = name, loop, journal, say
        self.pending: list[Mapping[str, jax.Array]] = []
        self.began, self.first = time.monotonic(), start
        self.spent_steps = 0

    def after(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        self.pending.append(metrics)
        if step == self.first + 1:  # compilation is not part of the rate
            jax.block_until_ready(metrics)
            self.began = time.monotonic()
        if step % self.loop.log_every and step != self.loop.steps:
            return
        host = jax.device_get(self.pending)
        series = {k: np.array([m[k] for m in host]) for k in host[0]}
        means = {k: float(np.nanmean(v)) for k, v in series.items() if not np.isnan(v).all()}
        self.pending = []
        done = step - self.first - 1
        rate = done / max(time.monotonic() - self.began, 1e-9) if done else 0.0
        left = (self.loop.steps - step) / rate if rate else float("nan")
        self.journal.write(json.dumps({"step": step, "steps_per_s": round(rate, 4), **means}) + "\n")
        self.journal.flush()
        terms = "  ".join(f"{k} {v:.4g}" for k, v in means.items() if k != "skipped" or v)
        self.say(f"[{self.name}] {step}/{self.loop.steps}  {rate:.2f} step/s  ETA {left / 60:.1f} min  {terms}")


def _on_sigterm() -> Callable[[int], bool]:
    """Tells at the end of a step whether to save and stop; all processes do at one step, whoever got the signal."""
    if distributed.processes() > 1:
        return multihost_utils.reached_preemption_sync_point
    event = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: event.set())
    return lambda step: event.is_set()
