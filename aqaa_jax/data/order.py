"""The order of examples: a pure function of seed and step."""

from __future__ import annotations

import numpy as np

from aqaa_jax.data.permutation import permutation


class Order:
    """A seeded, endless shuffle of ``range(size)``; every epoch is a new permutation.

    Ours: Grain's shuffle takes milliseconds per number for sets of a few dozen, which length buckets are.
    """

    def __init__(self, size: int, seed: int):
        if size < 1:
            raise ValueError(f"an order needs at least one example, got {size}")
        self._size, self._seed = size, seed

    def batch(self, step: int, size: int) -> np.ndarray:
        """Example numbers ``[size]`` of the batch of ``step`` (int64)."""
        places = (divmod(i, self._size) for i in range(step * size, (step + 1) * size))
        return np.array([permutation(self._size, self._seed, epoch)[position] for epoch, position in places])


def pad_stack(rows: list[np.ndarray], length: int, fill: float = 0) -> np.ndarray:
    """Rows of different first dimension, cut or filled to ``length`` and stacked: ``[len(rows), length, ...]``."""
    out = np.full((len(rows), length, *rows[0].shape[1:]), fill, rows[0].dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row[:length]
    return out
