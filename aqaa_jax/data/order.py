"""The order of examples: a pure function of seed and step."""

from __future__ import annotations

import grain
import numpy as np


class Order:
    """A seeded, endless shuffle of ``range(size)``; every epoch is a new permutation (Grain)."""

    def __init__(self, size: int, seed: int):
        if size < 1:
            raise ValueError(f"an order needs at least one example, got {size}")
        self._indices = grain.MapDataset.range(size).shuffle(seed=seed).repeat()

    def batch(self, step: int, size: int) -> np.ndarray:
        """Example numbers ``[size]`` of the batch of ``step`` (int64)."""
        return np.array([self._indices[i] for i in range(step * size, (step + 1) * size)])


def pad_stack(rows: list[np.ndarray], length: int, fill: float = 0) -> np.ndarray:
    """Rows of different first dimension, cut or filled to ``length`` and stacked: ``[len(rows), length, ...]``."""
    out = np.full((len(rows), length, *rows[0].shape[1:]), fill, rows[0].dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row[:length]
    return out
