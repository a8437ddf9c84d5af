"""Seeded shuffles without a table, and which stream a draw comes from: pure functions of a number.

The shuffle is a Feistel network over the bits of the largest position, with cycle walking for sizes in between (Black
and Rogaway, *Ciphers with arbitrary finite domains*, 2002, section 4). Any position of any epoch costs microseconds
and no memory, so a position in the data is one integer. Not an affine map: neighbours would stay related.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

ROUNDS = 4  # each of two half rounds
CYCLE = 1024  # draws after which the shares of a mixture are met exactly
_MASK = (1 << 64) - 1


def mixed(*numbers: int) -> int:
    """64 bits that depend on every bit of every number (the finaliser of SplitMix64, chained)."""
    state = 0
    for number in numbers:
        state = (state + (number & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


class Permutation:
    """A bijection of ``range(size)`` chosen by ``key`` numbers. Raises ``ValueError`` for a size below 1."""

    def __init__(self, size: int, *key: int):
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, got {size}")
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self._low, self._high = bits // 2, bits - bits // 2
        self._keys = [(mixed(*key, size, n), mixed(*key, size, ~n)) for n in range(ROUNDS)]

    def __getitem__(self, position: int) -> int:
        """Where ``position`` goes. Raises ``IndexError`` outside of ``range(size)``."""
        if not 0 <= position < self.size:
            raise IndexError(position)
        low, high = (1 << self._low) - 1, (1 << self._high) - 1
        while True:  # at most twice as many values as places: two walks or fewer in the mean
            left, right = position >> self._low, position & low
            for one, other in self._keys:
                left ^= _scrambled(one ^ right) & high
                right ^= _scrambled(other ^ left) & low
            position = left << self._low | right
            if position < self.size:
                return position


def _scrambled(value: int) -> int:
    value = value * 0xBF58476D1CE4E5B9 & _MASK
    return (value ^ value >> 29) * 0x94D049BB133111EB >> 32 & 0xFFFFFFFF


@functools.lru_cache(maxsize=256)
def permutation(size: int, *key: int) -> Permutation:
    """``Permutation(size, *key)``; the ones used last are kept, since neighbouring draws ask for the same."""
    return Permutation(size, *key)


class Mixture:
    """Endless draws from streams of rows by weight, every stream shuffled anew in each of its epochs.

    ``rows`` and ``weights`` by stream name. A weight is the stream's share of rows, met to 1/1024 in every 1,024
    draws; within one stream's epoch every row comes exactly once, whatever the weights. Raises ``ValueError`` for
    a stream without rows, a weight that is not positive, or shares too small to be met.
    """

    def __init__(self, rows: Mapping[str, int], weights: Mapping[str, float], seed: int):
        if set(rows) != set(weights) or not rows:
            raise ValueError(f"weights are for {sorted(weights)}; expected the streams {sorted(rows)}")
        self.names = sorted(rows)
        self._rows, self._seed = [rows[name] for name in self.names], seed
        for name in self.names:
            if rows[name] < 1:
                raise ValueError(f"stream {name!r} has no rows")
            if not weights[name] > 0:
                raise ValueError(f"stream {name!r} has the weight {weights[name]}; expected a positive number")
        slots = apportioned([weights[name] for name in self.names], CYCLE if len(rows) > 1 else 1)
        if 0 in slots:
            raise ValueError(f"stream {self.names[slots.index(0)]!r} has less than 1/{CYCLE} of the weight")
        self._slots = slots
        self._stream = np.repeat(np.arange(len(slots)), slots).tolist()
        self._rank = np.concatenate([np.arange(n) for n in slots]).tolist()

    def __getitem__(self, draw: int) -> tuple[str, int, int]:
        """``(stream, row, visit)`` of a draw; ``visit`` counts the draws of that stream before this one."""
        cycle, slot = divmod(draw, len(self._stream))
        slot = permutation(len(self._stream), self._seed, 0, cycle)[slot]
        stream = self._stream[slot]
        visit = cycle * self._slots[stream] + self._rank[slot]
        epoch, position = divmod(visit, self._rows[stream])
        return self.names[stream], permutation(self._rows[stream], self._seed, 1 + stream, epoch)[position], visit


def apportioned(weights: list[float], seats: int) -> list[int]:
    """Whole numbers that add up to ``seats`` in proportion to ``weights`` (largest remainders)."""
    exact = np.array(weights, np.float64) / np.sum(weights) * seats
    whole = np.floor(exact).astype(int)
    for k in np.argsort(whole - exact, kind="stable")[: seats - int(whole.sum())]:
        whole[k] += 1
    return whole.tolist()
