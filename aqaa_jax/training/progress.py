"""Where the time of a run goes, and the line that says how it does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from aqaa_jax.training.config import LoopConfig
from aqaa_jax.training.guard import STREAK, reason
from aqaa_jax.training.journal import Journal

GUARD = STREAK[: STREAK.index("_") + 1]


class Progress:
    """Means since the last line, with rate and time left, to the terminal and to the journal.

    Time that is not ``away`` and not that of the first step, which compiles, is productive: it went into steps. The
    journal keeps the sum, so that over several sittings ``goodput`` is the productive share of all time since the run
    began; steps that had to be done again, saves, restarts and idle machines count against it. ``peak`` is what the
    devices could do, FLOP/s; ``mfu`` is what the model took of it, absent where either is not known.
    """

    def __init__(self, name: str, loop: LoopConfig, journal: Journal, say: Callable[[str], None], peak: float = 0.0):
        self.name, self.loop, self.journal, self.say, self.peak = name, loop, journal, say, peak
        self.pending: list[Mapping[str, jax.Array]] = []
        self.productive = float(journal.last.get("productive_s", 0.0))
        self.clock = self.began = time.monotonic()
        self.spent: dict[str, float] = {}
        self.flops, self.done, self.untimed, self.started = 0.0, 0, 0, False

    @contextlib.contextmanager
    def away(self, reason: str) -> Iterator[None]:
        """What happens inside is no step."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.spent[reason] = self.spent.get(reason, 0.0) + time.monotonic() - began

    def after(self, metrics: Mapping[str, jax.Array], flops: float) -> None:
        """A step has been started; ``metrics`` may not be there yet, ``flops`` are the model's."""
        self.pending.append(metrics)
        self.flops += flops
        if not self.started:  # compilation is not part of the rate
            jax.block_until_ready(metrics)
            self.started, self.clock = True, time.monotonic()
            self.began, self.done, self.untimed, self.flops, self.spent = self.clock, -1, 1, 0.0, {}
        self.done += 1

    def skipped(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Step number ``step`` changed nothing: a row of its own."""
        self.journal.row(step, event="skipped", **reason(jax.device_get(metrics)))

    def forget(self) -> None:
        """The steps since the last line are to be done again, or left out."""
        self.pending, self.untimed = [], 0

    def line(self, step: int) -> None:
        """Tell of the steps since the last line, the last of them ``step``."""
        host = jax.device_get(self.pending)
        now = time.monotonic()
        elapsed, self.clock = now - self.clock, now
        stepping = max(elapsed - sum(self.spent.values()), 0.0)
        self.productive += stepping
        rate = self.done / max(now - self.began, 1e-9)
        means = _means(host)
        figures = {"steps_per_s": round(rate, 4), **means}
        if elapsed > 0 and self.done:
            figures["data_wait"] = round(self.spent.get("data", 0.0) / elapsed, 5)
            if "tokens" in means:
                figures["tokens_per_s"] = round(sum(float(m["tokens"]) for m in host[self.untimed :]) / elapsed, 1)
            if self.peak and self.flops:
                figures["mfu"] = round(self.flops / elapsed / self.peak, 5)
        figures["productive_s"] = round(self.productive, 3)
        figures["goodput"] = round(self.productive / max(time.time() - self.journal.began, 1e-9), 5)
        self.pending, self.untimed, self.flops, self.spent = [], 0, 0.0, {}
        self.journal.row(step, **figures)
        left = (self.loop.steps - step) / rate if rate else float("nan")
        told = {k: v for k, v in figures.items() if k not in ("steps_per_s", "productive_s", "tokens") and v}
        self.say(
            f"[{self.name}] {step}/{self.loop.steps}  {rate:.2f} step/s  ETA {left / 60:.1f} min  {figures_line(told)}"
        )


def _means(host: list[Mapping[str, Any]]) -> dict[str, float]:
    """Of the good steps, and the share of skipped ones; what no step has is left out."""
    good = [m for m in host if not m["skipped"]]
    means = {"skipped": (len(host) - len(good)) / max(len(host), 1)} if host else {}
    for name in host[0] if host else ():
        values = np.array([m[name] for m in good])
        if name != "skipped" and not name.startswith(GUARD) and len(values) and not np.isnan(values).all():
            means[name] = float(np.nanmean(values))
    return means


def figures_line(figures: Mapping[str, float]) -> str:
    """Names and values in a row, four digits each."""
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
