"""Batches of a packed dataset by step: Grain reads, assembles and prefetches, in worker processes if asked to.

The state of the data is the step. Host ``h`` of ``H`` reads rows ``[h * B / H, (h + 1) * B / H)`` of each step, so that
the rows of all hosts one after another are the same global batch for every ``H``. Nothing here touches a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np
from absl import flags

from aqaa_jax.data.examples import Unit, noisy
from aqaa_jax.data.language import PackedBatch, packed_row
from aqaa_jax.data.packed import Packed
from aqaa_jax.tokens.vocab import Vocab

ENDLESS = 1 << 40  # rows: no run is that long


class Draws:
    """Random access to the rows that one host trains on, from ``first_step`` on: (draw, units)."""

    def __init__(self, packed: Packed, seed: int, batch: int, host: int, hosts: int, first_step: int):
        self.packed, self.mixture = packed, packed.mixture(seed)
        self.batch, self.rows, self.first = batch, batch // hosts, first_step
        self.offset = host * self.rows

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> tuple[int, list[Unit]]:
        step, row = divmod(int(index), self.rows)
        draw = (self.first + step) * self.batch + self.offset + row
        stream, number, _ = self.mixture[draw]
        return draw, self.packed.row(stream, number)


class Assemble:
    """(draw, units) -> one row of arrays, its heard audio codes disturbed by ``code_noise``."""

    def __init__(self, packed: Packed, seed: int, code_noise: float):
        self.length, self.targets, self.vocab = packed.length, packed.targets, Vocab(packed.vocab)
        self.seed, self.noise = seed, code_noise

    def __call__(self, drawn: tuple[int, list[Unit]]) -> PackedBatch:
        draw, units = drawn
        if self.noise:
            rng = np.random.default_rng([self.seed, 4, draw])
            units = [tuple(noisy(example, self.vocab, self.noise, rng) for example in unit) for unit in units]
        return packed_row(units, self.length, self.targets, self.vocab)


class Reader:
    """``reader(step)`` is this host's part of the step's batch: a pure function of ``seed`` and ``step``.

    ``batch`` counts the rows of all hosts. Steps asked for in order are read ahead, by ``workers`` processes or, with
    0, by ``threads`` of this one. Raises ``ValueError`` unless ``hosts`` divides ``batch``.
    """

    def __init__(
        self,
        packed: Packed | str | Path,
        *,
        batch: int,
        seed: int,
        host: int = 0,
        hosts: int = 1,
        code_noise: float = 0.0,
        workers: int = 0,
        threads: int = 1,
        ahead: int = 4,
    ):
        if not 0 <= host < hosts or batch < 1 or batch % hosts:
            raise ValueError(f"a batch of {batch} rows cannot be shared by host {host} of {hosts}")
        self.packed = packed if isinstance(packed, Packed) else Packed(packed)
        self.batch, self.seed, self.host, self.hosts = batch, seed, host, hosts
        self.code_noise, self.workers, self.threads, self.ahead = code_noise, workers, threads, ahead
        self._next, self._iterator = -1, None

    def __call__(self, step: int) -> PackedBatch:
        if step != self._next or self._iterator is None:
            self.close()
            self._iterator = self.batches(step)
        batch = next(self._iterator)
        self._next = step + 1
        if self.workers:  # out of memory shared with a worker, which goes when the batch does
            return {key: np.array(value) for key, value in batch.items()}  # type: ignore[return-value]
        return batch

    def batches(self, first_step: int = 0) -> Iterator[PackedBatch]:
        """The batches from ``first_step`` on, without end."""
        draws = Draws(self.packed, self.seed, self.batch, self.host, self.hosts, first_step)
        dataset = (
            grain.MapDataset.source(draws)
            .map(Assemble(self.packed, self.seed, self.code_noise))
            .batch(self.batch // self.hosts)
            .to_iter_dataset(grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=self.ahead))
        )
        if self.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's workers read flags of their own; all keep their defaults
            options = grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=self.ahead)
            dataset = dataset.mp_prefetch(options)
        return iter(dataset)

    def close(self) -> None:
        """Stop reading ahead."""
        stop = getattr(self._iterator, "close", None)
        if stop is not None:
            stop()
        self._iterator, self._next = None, -1
