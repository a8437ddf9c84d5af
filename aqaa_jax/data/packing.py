"""The pack plan: which examples share a row, computed once from their lengths.

Inside windows of shuffled examples, so that companions come from anywhere and the cost stays linear, rows are filled in
two ways, and the way that needs fewer rows is kept: first-fit-decreasing, and matching the last two examples of a row
to what is left of it. So no plan is worse than first-fit-decreasing.
"""

from __future__ import annotations

import bisect
from typing import NamedTuple

import numpy as np

WINDOW = 1 << 16


class Plan(NamedTuple):
    """Rows of examples in ragged form: row ``r`` is ``members[offsets[r] : offsets[r + 1]]``."""

    offsets: np.ndarray  # int64 [rows + 1]
    members: np.ndarray  # int64: example numbers
    left_out: np.ndarray  # int64: examples longer than a row, in none of them

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.members[self.offsets[row] : self.offsets[row + 1]]

    def fill(self, lengths: np.ndarray, capacity: int) -> float:
        """The share of all places of all rows that hold a token."""
        return float(np.sum(np.asarray(lengths, np.int64)[self.members]) / max(1, len(self) * capacity))


def pack(lengths: np.ndarray, capacity: int, *, seed: int = 0, window: int = WINDOW) -> Plan:
    """Put examples of ``lengths`` into rows of ``capacity`` tokens, every one that fits into exactly one.

    Deterministic in its arguments. Raises ``ValueError`` for a capacity or a length below 1.
    """
    lengths = np.asarray(lengths, np.int64)
    if capacity < 1:
        raise ValueError(f"row length is {capacity}; expected at least 1")
    if len(lengths) and lengths.min() < 1:
        raise ValueError(f"an example has length {lengths.min()}; expected at least 1")
    order = np.random.default_rng([seed, 3]).permutation(len(lengths))
    fitting = order[lengths[order] <= capacity]
    rows: list[list[int]] = []
    for start in range(0, len(fitting), window):
        examples = fitting[start : start + window]
        filled = [fill(_Waiting(examples, lengths, capacity), capacity) for fill in (_matched, _decreasing)]
        rows += min(filled, key=len)
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    members = np.fromiter((k for row in rows for k in row), np.int64, count=int(offsets[-1]))
    return Plan(offsets, members, np.flatnonzero(lengths > capacity))


class _Waiting:
    """Examples that are in no row yet, by length: ``count[length]`` of them."""

    def __init__(self, examples: np.ndarray, lengths: np.ndarray, capacity: int):
        self.lengths = lengths[examples].tolist()
        self._stacks: dict[int, list[int]] = {}
        for example, length in zip(examples.tolist(), self.lengths, strict=True):
            self._stacks.setdefault(length, []).append(example)
        self.sizes = sorted(self._stacks)
        self.count = np.zeros(capacity + 1, np.int64)
        for size in self.sizes:
            self.count[size] = len(self._stacks[size])

    def take(self, size: int) -> int:
        self.count[size] -= 1
        if not self.count[size]:
            del self.sizes[bisect.bisect_left(self.sizes, size)]
        return self._stacks[size].pop()

    def largest(self, most: int) -> int:
        return self.sizes[bisect.bisect_right(self.sizes, most) - 1]


def _decreasing(waiting: _Waiting, capacity: int) -> list[list[int]]:
    """First-fit-decreasing: the longest that fits, again and again."""
    rows = []
    while waiting.sizes:
        row, left = [], capacity
        while waiting.sizes and waiting.sizes[0] <= left:
            size = waiting.largest(left)
            row.append(waiting.take(size))
            left -= size
        rows.append(row)
    return rows


def _matched(waiting: _Waiting, capacity: int) -> list[list[int]]:
    """Any examples at first, then one or two that fill the rest to the last token.

    What is waiting keeps its mix of lengths, so that such two are found until almost all are gone; decreasing order
    uses up the long ones and leaves rows that only short or only long ones could fill.
    """
    rows, coming = [], iter(waiting.lengths)
    while waiting.sizes:
        row, left = [], capacity
        while waiting.sizes and waiting.sizes[0] <= left:
            if left > 2 * waiting.sizes[-1]:
                chosen = [next(size for size in coming if waiting.count[size])]
            else:
                chosen = _closing(waiting, left)
            row += map(waiting.take, chosen)
            left -= sum(chosen)
        rows.append(row)
    return rows


def _closing(waiting: _Waiting, left: int) -> list[int]:
    """The one or two sizes that fill ``left`` best; of those that fill it wholly, the most frequent."""
    count = waiting.count[: left + 1]
    pairs = np.minimum(count, count[::-1])  # entry a: a and left - a
    if left % 2 == 0:
        pairs[left // 2] = count[left // 2] // 2
    a = int(pairs.argmax())
    if count[left] > pairs[a]:
        return [left]
    if pairs[a]:
        return [a, left - a]
    best = [waiting.largest(left)]
    low, sizes = 0, waiting.sizes
    for high in range(bisect.bisect_right(sizes, left) - 1, -1, -1):
        while low <= high and sizes[low] + sizes[high] <= left:
            if (low < high or waiting.count[sizes[low]] > 1) and sizes[low] + sizes[high] > sum(best):
                best = [sizes[high], sizes[low]]
            low += 1
    return best
