"""Batches ahead of the steps that use them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Feed:
    """``feed(step)`` is ``make(step)``, made by a thread while earlier steps run.

    ``ahead`` batches of the steps after ``step`` and before ``end`` are asked for; with 0 all is made on the spot. Any
    step may be asked for, the next one is there soonest. An error of ``make`` is raised for the step it belongs to.
    """

    def __init__(self, make: Callable[[int], Any], end: int, ahead: int):
        self._make, self._end, self._ahead = make, end, ahead
        self._coming: deque[tuple[int, Future[Any]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed") if ahead > 0 else None

    def __call__(self, step: int) -> Any:
        if self._thread is None:
            return self._make(step)
        if self._coming and self._coming[0][0] != step:
            self._drop()
        next_step = step + len(self._coming)
        for number in range(next_step, min(step + self._ahead, self._end - 1) + 1):
            self._coming.append((number, self._thread.submit(self._make, number)))
        return self._coming.popleft()[1].result()

    def close(self) -> None:
        """Let go of what is not wanted any more; a batch that is being made is waited for."""
        if self._thread is not None:
            self._drop()
            self._thread.shutdown(cancel_futures=True)

    def _drop(self) -> None:
        for _, future in self._coming:
            future.cancel()
        self._coming.clear()
