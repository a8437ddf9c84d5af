"""The one place where time passes: steps, and what happens between them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from aqaa_jax.atomic import write_json
from aqaa_jax.checkpoint.store import Store
from aqaa_jax.training import distributed, samples
from aqaa_jax.training.config import LoopConfig
from aqaa_jax.training.feed import Feed
from aqaa_jax.training.guard import STREAK
from aqaa_jax.training.progress import Progress, figures_line
from aqaa_jax.training.resume import States, behind
from aqaa_jax.training.state import TrainState, averaged

Step = Callable[[TrainState, Any], tuple[TrainState, Mapping[str, jax.Array]]]


class Run:
    """The steps of one sitting.

    The host is one step ahead of the device: while a step runs it starts the next and looks at what became of the one
    before. Where something is to be written it waits for the step first, so that nothing is written of steps that the
    guard takes back.
    """

    def __init__(
        self,
        stage: Any,
        loop: LoopConfig,
        run_dir: Path,
        store: Store,
        states: States,
        progress: Progress,
        feed: Feed,
        within: Callable[[], contextlib.AbstractContextManager[None]],  # the mesh, for the step and ``adjust`` alone
    ):
        self.stage, self.loop, self.run_dir, self.store, self.within = stage, loop, run_dir, store, within
        self.states, self.progress, self.feed = states, progress, feed
        self._unseen: deque[tuple[int, Mapping[str, jax.Array]]] = deque()
        self._streak = 0
        if loop.keep_best and not loop.evaluate_every:
            raise ValueError(f"keep_best is {loop.keep_best!r} and evaluate_every 0; expected a number of steps")

    def steps(self, state: TrainState, train_step: Step) -> TrainState:
        """From ``state`` to the last step. SIGTERM saves and exits with code 143."""
        loop, progress, step = self.loop, self.progress, int(state.step)
        flops = getattr(self.stage, "flops", lambda batch: 0.0)
        interrupted = _on_sigterm()
        with contextlib.closing(samples.Profiler(self.run_dir / "profile", loop.profile)) as profiler:
            while step < loop.steps:
                profiler.before(step)
                with progress.away("data"):
                    batch = self.feed(step)
                with self.within():
                    state, metrics = train_step(self.stage.adjust(state, step), batch)
                stopped, step = interrupted(step), step + 1
                progress.after(metrics, flops(batch))
                self._unseen.append((step, metrics))
                writes = stopped or step == loop.steps or any(_due(every, step) for every in self._rhythms())
                self._look(0 if writes else 1)
                if loop.guard.patience and self._streak >= loop.guard.patience:
                    state = self._back(state)
                    step = int(state.step)
                elif writes:
                    self._write(state, step)
                if stopped:
                    self._save(state, step)
                    self.store.wait()
                    progress.say(f"[{self.stage.name}] stopped by SIGTERM, saved at step {step}")
                    raise SystemExit(143)
        self._save(state, step)
        return state

    def tell_best(self) -> None:
        """Say and write which saved step is the best, if that was asked for."""
        if not self.loop.keep_best or not self.store.steps() or (best := self.store.best()) is None:
            return
        figures = self.store.figures(best)
        if distributed.first():
            write_json(self.run_dir / "best.json", {"step": best, "by": self.loop.keep_best, "figures": figures})
        self.progress.say(f"[{self.stage.name}] best by {self.loop.keep_best}: step {best}  {figures_line(figures)}")

    def _rhythms(self) -> tuple[int, ...]:
        return (self.loop.log_every, self.loop.save_every, self.loop.evaluate_every, self.loop.sample_every)

    def _look(self, leave: int) -> None:
        """See what became of the steps so far but for the last ``leave``; skipped ones go into the journal."""
        patience = self.loop.guard.patience
        while len(self._unseen) > leave:
            step, metrics = self._unseen.popleft()
            self._streak = int(metrics[STREAK])
            if self._streak and (not patience or self._streak <= patience):
                self.progress.skipped(step, metrics)

    def _back(self, state: TrainState) -> TrainState:
        """Behind the skipped steps with the weights from before them."""
        with self.progress.away("rollback"), self.within():
            state, told = behind(state, self.states, self.store, self.loop, self.stage.adjust)
        self._unseen.clear()
        self._streak = 0
        self.progress.forget()
        self.progress.journal.row(int(state.step), event="rollback", told=told)
        self.progress.say(f"[{self.stage.name}] {told}")
        return state

    def _write(self, state: TrainState, step: int) -> None:
        """All that is due behind ``step``: the line, figures and samples of the averaged model, the checkpoint."""
        loop, progress, figures = self.loop, self.progress, {}
        if _due(loop.log_every, step) or step == loop.steps:
            progress.line(step)
        if self._streak:  # a state in doubt is no example and no place to return to
            return
        if _due(loop.evaluate_every, step):
            with progress.away("evaluate"):
                figures = self.stage.evaluate(averaged(state))
            if loop.keep_best and loop.keep_best.removeprefix("-") not in figures:
                raise ValueError(f"keep_best {loop.keep_best!r} is no figure of the stage; it has {', '.join(figures)}")
            progress.journal.row(step, event="evaluated", **figures)
            progress.say(f"[{self.stage.name}] {step}/{loop.steps}  {figures_line(figures)}")
        if _due(loop.sample_every, step) and hasattr(self.stage, "samples"):
            with progress.away("samples"):
                made = self.stage.samples(averaged(state))
                if distributed.first():
                    samples.write(self.run_dir / "samples" / str(step), made, progress.journal, step)
        if _due(loop.save_every, step) or (loop.keep_best and figures):
            self._save(state, step, figures)

    def _save(self, state: TrainState, step: int, figures: Mapping[str, float] | None = None) -> None:
        if self.store.latest() != step:
            with self.progress.away("save"):
                self.store.save(step, state, figures)


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _on_sigterm() -> Callable[[int], bool]:
    """Tells at the end of a step whether to save and stop; all processes do at one step, whoever got the signal."""
    if distributed.processes() > 1:
        return multihost_utils.reached_preemption_sync_point
    event = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: event.set())
    return lambda step: event.is_set()
