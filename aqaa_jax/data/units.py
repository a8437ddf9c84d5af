"""Units on disk: the ids of a stream, one flat file per shard, and where each unit begins.

An id is stored as int32; a target as its complement ``~id``, so the mask needs no file of its own. Shards are mapped
into memory: the workers of one machine share them, and reading a unit costs a copy of its ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aqaa_jax import atomic
from aqaa_jax.data.examples import Unit
from aqaa_jax.tokens.prompt import Example

INDEX = "units.npz"


def write(folder: Path, shard: int, units: Sequence[Unit]) -> None:
    """One shard: ids, and beside them the segments of each unit and the lengths of all segments."""
    ids = [np.where(e.loss_mask, ~e.ids, e.ids).astype(np.int32) for unit in units for e in unit]
    flat = np.concatenate([np.zeros(0, np.int32), *ids])
    with atomic.written(_ids(folder, shard)) as part, part.open("wb") as file:
        np.save(file, flat)
    with atomic.written(_lengths(folder, shard)) as part, part.open("wb") as file:
        np.savez(
            file,
            lengths=np.array([len(i) for i in ids], np.int64),
            targets=np.array([int(e.loss_mask[1:].sum()) for unit in units for e in unit], np.int64),
            segments=np.array([len(unit) for unit in units], np.int64),
            sha256=np.frombuffer(hashlib.sha256(flat.tobytes()).digest(), np.uint8),
        )


def write_index(folder: Path, shards: int) -> None:
    """``units.npz`` of all shards: where each segment and each unit begins, and a hash of everything."""
    parts = []
    for shard in range(shards):
        with np.load(_lengths(folder, shard)) as data:
            parts.append({key: data[key] for key in data.files})
    lengths, targets, segments = (np.concatenate([p[k] for p in parts]) for k in ("lengths", "targets", "segments"))
    digest = hashlib.sha256(b"".join(p["sha256"].tobytes() for p in parts) + segments.tobytes() + lengths.tobytes())
    with atomic.written(folder / INDEX) as part, part.open("wb") as file:
        np.savez(
            file,
            shards=np.cumsum([0, *(int(p["lengths"].sum()) for p in parts)], dtype=np.int64),
            starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            first=np.concatenate([[0], np.cumsum(segments)]).astype(np.int64),
            targets=targets,
            sha256=np.array(digest.hexdigest()),
        )


class Units(Sequence):
    """The units of a folder by number, each a tuple of ``Example``."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        with np.load(self.folder / INDEX) as data:
            self._shards, self._starts, self._first = data["shards"], data["starts"], data["first"]
            self._targets = data["targets"]
            self.sha256 = str(data["sha256"])
        self._open: dict[int, np.ndarray] = {}
        self._check()

    def __reduce__(self):
        return Units, (self.folder,)  # a worker process maps the files for itself

    def __len__(self) -> int:
        return len(self._first) - 1

    def __getitem__(self, index: int) -> Unit:
        first, last = self._first[index : index + 2].tolist()
        return tuple(self._segment(k) for k in range(first, last))

    @property
    def lengths(self) -> np.ndarray:
        """Ids of each unit, all its segments together: int64."""
        return np.diff(self._starts[self._first])

    @property
    def targets(self) -> np.ndarray:
        """Targets of each unit: int64."""
        return np.add.reduceat(self._targets, self._first[:-1]) if len(self) else np.zeros(0, np.int64)

    @property
    def pairs(self) -> bool:
        """Whether the units are preference pairs."""
        return bool((np.diff(self._first) == 2).all()) and len(self) > 0

    def _segment(self, segment: int) -> Example:
        start, stop = self._starts[segment : segment + 2].tolist()
        shard = int(np.searchsorted(self._shards, start, side="right")) - 1
        if shard not in self._open:
            self._open[shard] = np.load(_ids(self.folder, shard), mmap_mode="r")
        offset = int(self._shards[shard])
        stored = np.array(self._open[shard][start - offset : stop - offset])
        return Example(np.where(stored < 0, ~stored, stored), stored < 0)

    def _check(self) -> None:
        """Every shard is there and as long as the index says."""
        for shard, count in enumerate(np.diff(self._shards).tolist()):
            path = _ids(self.folder, shard)
            if not path.is_file():
                raise ValueError(f"{path}: missing; the index names {len(self._shards) - 1} shards")
            try:
                found = np.load(path, mmap_mode="r").size if count else 0
            except (ValueError, OSError, EOFError) as error:
                raise ValueError(f"{path}: cut short or no shard of ids ({error})") from None
            if found != count:
                raise ValueError(f"{path}: holds {found} ids; the index says {count}")


def _ids(folder: Path, shard: int) -> Path:
    return folder / f"units-{shard:05d}.npy"


def _lengths(folder: Path, shard: int) -> Path:
    return folder / f"units-{shard:05d}.npz"
