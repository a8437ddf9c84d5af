"""The speaker encoder of a vocoder folder, ``campplus.onnx``: carried over whole, since it runs as published."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import NamedTuple

from aqaa_jax import atomic
from aqaa_jax.checkpoint import hashes
from aqaa_jax.checkpoint.folder import SPEAKER_MODEL
from aqaa_jax.convert.onnx_file import read_graph
from aqaa_jax.convert.record import read_record, write_record

NAME = "speaker"  # of its record


class SpeakerFile(NamedTuple):
    """The file, listed: how many weights it holds, how large it is."""

    path: Path
    weights: int
    size: int  # bytes

    @property
    def fingerprint(self) -> str:
        """Identifies the file by name, size and time of change."""
        stat = [self.path.name, self.size, self.path.stat().st_mtime_ns]
        return hashlib.sha256(json.dumps(stat).encode()).hexdigest()

    def text(self) -> str:
        """Its line of the report."""
        return f"{NAME}: {self.weights} tensors in {self.size / 1e9:.3f} GB, copied whole; from {self.path}"


def find(source: Path, target: Path) -> SpeakerFile | None:
    """The speaker encoder of a published folder, or None. Raises ``ValueError`` naming a file that is not one.

    Another one in ``target``, which no import has put there, is not replaced: that is a ``ValueError`` too.
    """
    path, there = source / SPEAKER_MODEL, target / SPEAKER_MODEL
    if not path.is_file():
        return None
    theirs = there.is_file() and read_record(target, NAME) is None
    if theirs and hashes.sha256(there) != hashes.sha256(path):  # a killed import leaves the same one
        raise ValueError(f"{there}: not written by an import; expected a folder without it")
    return SpeakerFile(path, len(read_graph(path).weights), path.stat().st_size)


def is_done(one: SpeakerFile, target: Path) -> bool:
    """Whether ``target`` has it from this very file."""
    record, there = read_record(target, NAME), target / SPEAKER_MODEL
    same = record is not None and record["source"] == one.fingerprint
    return same and there.is_file() and there.stat().st_size == one.size


def copy(one: SpeakerFile, target: Path) -> None:
    """Copy the file, then write ``speaker.import.json`` with its hash. Raises ``ValueError`` if the copy differs."""
    digest = hashes.sha256(one.path)
    with atomic.written(target / SPEAKER_MODEL) as part:
        shutil.copyfile(one.path, part)
        if hashes.sha256(part) != digest:
            raise ValueError(f"{target / SPEAKER_MODEL}: the copy differs from {one.path}")
    values = {"from": str(one.path), "source": one.fingerprint, "config": {}}
    write_record(target, NAME, values, {SPEAKER_MODEL: digest}, {"used": {SPEAKER_MODEL: f"{one.weights} tensors"}})
