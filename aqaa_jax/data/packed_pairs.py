"""The preference pairs of a packed dataset: numbered in the order of its rows, and the batch of every step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from aqaa_jax.data.packed import TARGET_GRID, Packed
from aqaa_jax.data.pairs import Pair, PairBatch, pair_batch, pair_of, target_counts
from aqaa_jax.tokens.vocab import Vocab


class PackedPairs(Sequence[Pair]):
    """The pairs of all rows of all streams, row after row; a pair too long for a row is none of them.

    Raises ``ValueError`` if the dataset holds examples of one answer.
    """

    def __init__(self, packed: Packed | str | Path):
        self.packed = packed if isinstance(packed, Packed) else Packed(packed)
        if not self.packed.pairs:
            raise ValueError(f"{self.packed.folder}: holds no pairs; expected the task preference")
        plans = {name: plan for name, (_, plan) in self.packed.streams.items()}
        ends = np.cumsum([len(plan.members) for plan in plans.values()])
        self._first = dict(zip(plans, [0, *ends.tolist()], strict=False))  # number of a stream's first pair
        self._length = int(ends[-1])

    @property
    def sha256(self) -> str:
        """Of what the pairs say and of their order."""
        digest = hashlib.sha256()
        for stored, plan in self.packed.streams.values():
            digest.update(stored.sha256.encode() + np.ascontiguousarray(plan.members, "<i8").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        name = max((n for n, first in self._first.items() if first <= index), key=lambda n: self._first[n])
        stored, plan = self.packed.streams[name]
        return pair_of(*stored[int(plan.members[index - self._first[name]])])

    def row(self, stream: str, row: int) -> range:
        """The numbers of the pairs of one row."""
        first, offsets = self._first[stream], self.packed.streams[stream][1].offsets
        return range(first + int(offsets[row]), first + int(offsets[row + 1]))

    def widths(self, vocab: Vocab, kinds: Sequence[str]) -> tuple[int, int]:
        """The most counted targets (rounded up), and the most pairs, of any row: every batch has these shapes."""
        counts = np.array(target_counts(self, vocab, kinds))
        rows = [self.row(name, r) for name, (_, plan) in self.packed.streams.items() for r in range(len(plan))]
        widest = max(int(counts[row.start : row.stop].sum()) for row in rows)
        return max(1, -(-widest // TARGET_GRID)) * TARGET_GRID, max(len(row) for row in rows)

    def batches(
        self, references: Sequence[np.ndarray], vocab: Vocab, kinds: Sequence[str], *, batch: int, seed: int
    ) -> Callable[[int], PairBatch]:
        """Step -> ``batch`` rows, draws of the dataset's mixture as ``Reader`` has them; fixed shapes.

        ``references`` holds the log-probabilities of every pair, by number.
        """
        mixture, (targets, most) = self.packed.mixture(seed), self.widths(vocab, kinds)

        def of_step(step: int) -> PairBatch:
            drawn = [mixture[step * batch + i] for i in range(batch)]
            rows = [[(self[k], references[k]) for k in self.row(stream, row)] for stream, row, _ in drawn]
            return pair_batch(rows, self.packed.length, vocab, kinds, targets=targets, pairs=most)

        return of_step
