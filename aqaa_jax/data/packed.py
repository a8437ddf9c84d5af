"""A packed dataset: streams of units, a plan of rows for each, and the draw that every row of every step is.

A folder::

    packed.json              written last: row length, targets, streams and their weights, vocabulary, hashes
    STREAM/units-*.npy       ids (``units.py``), one file per shard; STREAM/units.npz, where each unit begins
    STREAM/plan.npz          rows (``packing.py``), with the hash of the units they were planned for
    STREAM/report.json       how many records there were and what was skipped, and why

Row ``i`` of step ``s`` is draw ``s * batch + i`` of the mixture (``permutation.py``): a pure function of seed and
step, whatever the number of hosts that share the step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aqaa_jax import atomic
from aqaa_jax.config import VocabConfig, from_dict, to_dict
from aqaa_jax.data import packing, sharded, units
from aqaa_jax.data.examples import TASKS, Coder, Lacking, Unit
from aqaa_jax.data.examples import units as units_of
from aqaa_jax.data.permutation import Mixture
from aqaa_jax.data.records import Source
from aqaa_jax.data.sharded import Problem, Summary

INDEX, PLAN = "packed.json", "plan.npz"
TARGET_GRID = 32


class Stream(NamedTuple):
    """Tasks over one source of records, packed together; ``weight`` is its share of rows."""

    name: str
    source: Source
    tasks: tuple[str, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class UnitsJob:
    """The units of one stream, a shard per ``per_shard`` records.

    A record that is no example of any task, or is broken, is skipped and listed; ``strict`` makes a broken one fatal.
    """

    folder: Path
    source: Source
    tasks: tuple[str, ...]
    coder: Coder
    tokenizer: str
    strict: bool = False
    per_shard: int = 1 << 14
    title: str = "pack"
    unit: str = "tokens"

    @property
    def count(self) -> int:
        return -(-len(self.source) // self.per_shard)

    def identity(self) -> Mapping[str, Any]:
        coder = {"vocab": vars(self.coder.vocab).copy(), "weave": to_dict(self.coder.weave)}
        coder["vocab"].pop("classes")
        return {
            "source": self.source.fingerprint(),
            "tasks": list(self.tasks),
            "tokenizer": self.tokenizer,
            "tag_styles": self.coder.tag_styles,
            "per_shard": self.per_shard,
            **coder,
        }

    def __call__(self, shard: int) -> Summary:
        numbers = range(shard * self.per_shard, min((shard + 1) * self.per_shard, len(self.source)))
        made: list[Unit] = []
        problems: list[Problem] = []
        done = 0
        for number in numbers:
            found, lacking = [], []
            try:
                record = self.source[number]
                for task in self.tasks:
                    try:
                        found += units_of(task, record, self.coder)
                    except Lacking as error:
                        lacking.append(f"{task}: {error}")
            except ValueError as error:
                if self.strict:
                    raise
                problems.append(Problem(f"record {number}", str(error)))
                continue
            if not found:
                problems.append(Problem(f"record {number} ({record.id})", "; ".join(lacking)))
            made += found
            done += bool(found)
        units.write(self.folder, shard, made)
        return Summary(len(numbers), done, float(sum(len(e.ids) for unit in made for e in unit)), problems)


def build(
    folder: str | Path,
    streams: Sequence[Stream],
    coder: Coder,
    *,
    length: int,
    tokenizer: str,
    seed: int = 0,
    processes: int = 1,
    strict: bool = False,
    per_shard: int = 1 << 14,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Make the packed dataset of ``streams`` in rows of ``length`` and return its index.

    ``tokenizer`` is a hash of the text tokenizer, kept with the plan. Resumes. Raises ``ValueError`` for an unknown
    task, a stream that comes out empty, preference pairs mixed with other tasks, or a folder of another dataset.
    """
    folder = Path(folder)
    pairs = _all_pairs(streams)
    (folder / INDEX).unlink(missing_ok=True)
    entries, widest = {}, 1
    for stream in streams:
        job = UnitsJob(
            folder / stream.name,
            stream.source,
            stream.tasks,
            coder,
            tokenizer,
            strict,
            per_shard,
            f"pack {stream.name}",
        )
        summaries = sharded.run(job, processes=processes, say=say)
        units.write_index(job.folder, job.count)
        entry, targets = _plan(job.folder, length, seed, tokenizer)
        widest = max(widest, targets)
        total = sharded.report(job, summaries, **entry)
        entries[stream.name] = {"weight": stream.weight, "tasks": list(stream.tasks), **entry}
        say(
            f"[pack {stream.name}] {entry['units']} examples in {entry['rows']} rows of {length}, "
            f"{entry['fill']:.1%} full, {entry['left_out']} too long, {total['skipped']} records skipped"
        )
    v = coder.vocab
    index = {
        "length": length,
        "targets": -(-widest // TARGET_GRID) * TARGET_GRID,
        "pairs": pairs,
        "seed": seed,
        "tokenizer": tokenizer,
        "vocab": to_dict(VocabConfig(v.size, v.audio_start, v.linguistic, v.semantic)),
        "weave": to_dict(coder.weave),
        "streams": entries,
    }
    atomic.write_json(folder / INDEX, index)
    return index


def _all_pairs(streams: Sequence[Stream]) -> bool:
    """Whether the streams are of preference pairs; refuses unknown tasks, and pairs beside anything else."""
    for stream in streams:
        if unknown := sorted(set(stream.tasks) - set(TASKS)):
            raise ValueError(f"unknown task {unknown[0]!r}; expected some of {', '.join(TASKS)}")
    tasks = {task for stream in streams for task in stream.tasks}
    if "preference" in tasks and len(tasks) > 1:
        raise ValueError("preference pairs cannot be packed with other tasks: their loss is another one")
    return "preference" in tasks


def _plan(folder: Path, length: int, seed: int, tokenizer: str) -> tuple[dict[str, Any], int]:
    """Write ``plan.npz`` and return its figures and the most targets of any row."""
    stored = units.Units(folder)
    plan = packing.pack(stored.lengths, length, seed=seed)
    if not len(plan):
        raise ValueError(f"{folder}: no example fits a row of {length}; see {folder / sharded.REPORT}")
    targets = int(np.add.reduceat(stored.targets[plan.members], plan.offsets[:-1]).max())
    with atomic.written(folder / PLAN) as part, part.open("wb") as file:
        np.savez(
            file,
            **plan._asdict(),
            row_length=length,
            dataset=np.array(stored.sha256),
            tokenizer=np.array(tokenizer),
        )
    figures = {
        "units": len(stored),
        "rows": len(plan),
        "fill": round(plan.fill(stored.lengths, length), 5),
        "left_out": len(plan.left_out),
        "dataset": stored.sha256,
    }
    return figures, targets


class Packed:
    """A packed dataset that was built: ``rows(draw)`` gives the units of a row.

    Raises ``FileNotFoundError`` or ``ValueError`` naming the file if the folder is partial, cut short, or planned for
    other units.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing, so {folder} is not a (whole) packed dataset")
        index = atomic.read_json(path)
        try:
            self.length, self.targets, self.pairs = index["length"], index["targets"], index["pairs"]
            self.vocab, streams = from_dict(VocabConfig, index["vocab"]), index["streams"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: not the index of a packed dataset ({type(error).__name__}: {error})") from None
        self.weave, self.tokenizer = index["weave"], index["tokenizer"]
        self.weights = {name: float(entry["weight"]) for name, entry in streams.items()}
        self.streams = {name: self._stream(name, entry) for name, entry in streams.items()}

    def _stream(self, name: str, entry: Mapping[str, Any]) -> tuple[units.Units, packing.Plan]:
        stored, path = units.Units(self.folder / name), self.folder / name / PLAN
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing")
        with np.load(path) as data:
            plan = packing.Plan(data["offsets"], data["members"], data["left_out"])
            planned = str(data["dataset"]), int(data["row_length"])
        if planned != (stored.sha256, self.length) or entry["dataset"] != stored.sha256:
            raise ValueError(f"{path}: planned for other units or another row length; build the dataset again")
        return stored, plan

    def __reduce__(self):
        return Packed, (self.folder,)

    def mixture(self, seed: int) -> Mixture:
        """Which row each draw is."""
        return Mixture({name: len(plan) for name, (_, plan) in self.streams.items()}, self.weights, seed)

    def row(self, stream: str, row: int) -> list[Unit]:
        """The units of one row."""
        stored, plan = self.streams[stream]
        return [stored[k] for k in plan[row].tolist()]


def file_hash(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
