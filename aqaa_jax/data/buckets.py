"""Which examples make which batch: tasks mixed by share, rows of like length together, a pure function of the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from aqaa_jax.data.order import Order


class Rows(NamedTuple):
    """One batch: ``rows`` (example numbers of ``task``), to be padded to ``length`` tokens."""

    task: str
    rows: np.ndarray
    length: int


def coarse(lengths: np.ndarray) -> np.ndarray:
    """Each length rounded up to the next of 64, 96, 128, 192, 256, 384 ...: few shapes, at most a third padding."""
    power = 2 ** np.ceil(np.log2(np.maximum(lengths, 64))).astype(np.int64)
    return np.where(lengths <= power * 3 // 4, np.maximum(power * 3 // 4, 64), power)


class BucketPlan:
    """Batches of about ``tokens`` tokens each, every batch of one task and one length bucket.

    ``lengths`` gives the length of every example of every task; ``shares`` how often a task is drawn, counted in
    examples (positive numbers, normalised; 0 leaves a task out). Within a bucket every example is seen once per
    epoch of that bucket. Lengths are padded to a multiple of ``grid``, so only a few array shapes occur; rows come in
    multiples of ``shards``, the devices that a batch is split over.
    Raises ``ValueError`` for a share of an unknown or empty task, or when no share is positive.
    """

    def __init__(
        self,
        lengths: Mapping[str, np.ndarray],
        shares: Mapping[str, float],
        *,
        tokens: int,
        steps: int,
        seed: int,
        grid: int = 32,
        shards: int = 1,
    ):
        wanted = {task: share for task, share in shares.items() if share > 0}
        if not wanted:
            raise ValueError(f"no task has a positive share: {dict(shares)}")
        for task in wanted:
            if not len(lengths.get(task, ())):
                raise ValueError(f"task {task!r} has a share of {wanted[task]} but no examples")
        self._buckets: list[tuple[str, int, np.ndarray, Order]] = []
        steps_per_bucket = []
        self._tokens, self._shards = tokens, shards
        for task, share in sorted(wanted.items()):
            padded = -(-np.asarray(lengths[task]) // grid) * grid
            for length in np.unique(padded):
                members = np.flatnonzero(padded == length)
                rows = self._rows(int(length))
                self._buckets.append((task, int(length), members, Order(len(members), seed + len(self._buckets))))
                steps_per_bucket.append(share / sum(wanted.values()) * len(members) / len(padded) / rows)
        probabilities = np.array(steps_per_bucket) / np.sum(steps_per_bucket)
        rng = np.random.default_rng([seed, 1])
        self._bucket_of_step = rng.choice(len(self._buckets), size=steps, p=probabilities)
        self._visit_of_step = np.zeros(steps, np.int64)
        for bucket in range(len(self._buckets)):
            at = np.flatnonzero(self._bucket_of_step == bucket)
            self._visit_of_step[at] = np.arange(len(at))

    def _rows(self, length: int) -> int:
        return max(1, self._tokens // length // self._shards) * self._shards

    def __getitem__(self, step: int) -> Rows:
        task, length, members, order = self._buckets[self._bucket_of_step[step]]
        return Rows(task, members[order.batch(int(self._visit_of_step[step]), self._rows(length))], length)
