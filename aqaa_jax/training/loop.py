"""The one place where time passes: steps, clock, saving, logging."""

from __future__ import annotations

import json
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

from aqaa_jax.atomic import write_json
from aqaa_jax.checkpoint.store import Store
from aqaa_jax.sharding import mesh as meshes
from aqaa_jax.sharding import partition, rules
from aqaa_jax.training.config import LoopConfig, OptimizerConfig
from aqaa_jax.training.optimizer import make_optimizer
from aqaa_jax.training.state import TrainState, init_state
from aqaa_jax.training.step import Terms, make_train_step


class Stage(Protocol):
    """What differs from one stage of the recipe to the next."""

    name: str
    weights: Mapping[str, float]  # loss term -> weight

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
) -> Any:
    """Train ``stage`` to ``loop.steps`` in ``run_dir`` (resuming what is there) and return the model.

    ``start`` is a model to go on from, in place of the stage's new one.

    The averaged model is returned when ``ema_decay`` is set. SIGTERM saves and exits with code 143;
    running the same command again goes on from there with the same batches and random numbers.
    """
    say = log or (lambda text: print(text, file=sys.stderr, flush=True))
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    optimizer = make_optimizer(optimizer_config, loop.steps)
    key = jax.random.key(loop.seed)
    # A copy, because the step gives the memory of its state away.
    model = stage.init(jax.random.fold_in(key, 0)) if start is None else jax.tree.map(jnp.copy, start)
    state = init_state(model, optimizer, ema=loop.ema_decay > 0)
    store = Store(run_dir / "checkpoints", keep=loop.keep)
    latest = store.latest()
    if latest is not None:
        state = store.restore(latest, state)
        say(f"[{stage.name}] resuming from step {latest}")
    train_step = make_train_step(
        stage.loss,
        stage.weights,
        optimizer,
        ema_decay=loop.ema_decay,
        microbatches=loop.microbatches,
        by_rows=loop.by_rows,
        settle=getattr(stage, "settle", None),
    )
    mesh, table = meshes.make_mesh(loop.sharding.mesh), rules.rules_of(loop.sharding)
    interrupted = _on_sigterm()
    with partition.partitioning(mesh, table), (run_dir / "metrics.jsonl").open("a") as journal:
        progress = _Progress(stage.name, int(state.step), loop, journal, say)
        for step in range(int(state.step), loop.steps):
            state = stage.adjust(state, step)
            state, metrics = train_step(state, stage.batch(step), jax.random.fold_in(key, 1))
            progress.after(step + 1, metrics)
            if (step + 1) % loop.save_every == 0 or step + 1 == loop.steps or interrupted.is_set():
                store.save(step + 1, state)
            if interrupted.is_set():
                store.close()
                say(f"[{stage.name}] stopped by SIGTERM, saved at step {step + 1}")
                raise SystemExit(143)
    store.close()
    model = state.model if state.ema is None else state.ema
    figures = stage.evaluate(model)
    if figures:
        write_json(run_dir / "evaluation.json", figures)
        say(f"[{stage.name}] " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))
    return model


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


def _on_sigterm() -> threading.Event:
    event = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: event.set())
    return event
