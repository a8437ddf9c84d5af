"""Stages that need nothing of one another, each in a process of its own, side by side."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import NoReturn

PR_SET_PDEATHSIG = 1  # prctl(2)
Say = Callable[[str], None]


def side_by_side(needs: Mapping[str, frozenset[str]], command: Callable[[str], Sequence[str]], jobs: int, say: Say):
    """Run ``command(name)`` for every key of ``needs``, at most ``jobs`` at once, in order as far as they can begin.

    One begins when none of those it needs is waiting or running. SIGTERM, an interruption, or one that ends badly tells
    the others to save and stop (SIGTERM) and waits for them: ``SystemExit`` with 143 or that one's code (128 + signal
    for one that was killed).
    """
    waiting, running = dict(needs), {}
    before = signal.signal(signal.SIGTERM, _told_to_stop)
    try:
        while waiting or running:
            for name in [n for n in waiting if not waiting[n] & (waiting.keys() | running.keys())]:
                if len(running) < jobs:
                    del waiting[name]
                    running[name] = subprocess.Popen(command(name), preexec_fn=_end_with_parent)
            time.sleep(0.2)
            for name in [n for n, process in running.items() if process.poll() is not None]:
                code = running.pop(name).returncode
                if code:
                    others = f"; told {' and '.join(running)} to save and stop" if running else ""
                    say(f"[{name}] ended with code {code}{others}")
                    raise SystemExit(code if code > 0 else 128 - code)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, before)


def _told_to_stop(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    """A stage whose parent is killed stops as well: the same command again must not find it still at work."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
