"""Stages that need nothing of one another, each in a process of its own, side by side."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import NoReturn

PR_SET_PDEATHSIG = 1  # prctl(2)
PARENT = "AQAA_PARENT"
Say = Callable[[str], None]


def side_by_side(
    needs: Mapping[str, frozenset[str]], command: Callable[[str], Sequence[str]], jobs: int, say: Say
) -> None:
    """Run ``command(name)`` for every key of ``needs``, at most ``jobs`` at once, in order as far as they can begin.

    One begins when none of those it needs is waiting or running; each should call ``end_with_parent``. SIGTERM, an
    interruption, or one that ends badly tells the others to save and stop (SIGTERM) and waits for them: ``SystemExit``
    with 143 or that one's code (128 + signal for one that was killed).
    """
    waiting, running = dict(needs), {}
    before = signal.signal(signal.SIGTERM, _told_to_stop)
    try:
        while waiting or running:
            for name in [n for n in waiting if not waiting[n] & (waiting.keys() | running.keys())]:
                if len(running) < jobs:
                    del waiting[name]
                    running[name] = subprocess.Popen(command(name), env={**os.environ, PARENT: str(os.getpid())})
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


def end_with_parent() -> None:
    """In a stage begun by ``side_by_side``: SIGTERM when that is killed, so that the same command again finds it gone.

    On Linux; elsewhere, and in any other process, nothing.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        raise SystemExit(128 + signal.SIGTERM)
