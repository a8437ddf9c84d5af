"""How far a long copy is, how fast it goes and when it will be done; and what memory it took."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

_EVERY = 2.0  # seconds between lines


class Progress:
    """Call it with the bytes done since the last call."""

    def __init__(self, title: str, total: int, say: Callable[[str], None]):
        self._title, self._total, self._say = title, total, say
        self._done, self._start, self._told = 0, time.monotonic(), time.monotonic()

    def __call__(self, done: int) -> None:
        self._done += done
        now = time.monotonic()
        if now - self._told < _EVERY and self._done < self._total:
            return
        self._told = now
        rate = self._done / max(now - self._start, 1e-6)
        left = (self._total - self._done) / max(rate, 1.0)
        far = f"{self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB"
        self._say(f"[{self._title}] {far}, {rate / 1e6:.0f} MB/s, {_time(left)} left")


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"


def peak_memory() -> int:
    """The most resident memory this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
