"""A model folder of ours as published PyTorch files: planned from headers, streamed, resumable, verified.

Large files are written one tensor at a time under a temporary name and renamed; what makes a reader take a part
for whole (``config.json`` of the decoder, the configuration beside the others) is written after them.
``export.sha256.json`` records what an interrupted export has finished, and from which source: it goes on only from
the same one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aqaa_jax import atomic
from aqaa_jax.checkpoint import hashes, header, shards
from aqaa_jax.checkpoint.folder import CONFIG, PARTS, SPEAKER_MODEL, TEXT_MODEL, read_config
from aqaa_jax.checkpoint.header import nbytes
from aqaa_jax.config import SystemConfig
from aqaa_jax.convert.composing import compose
from aqaa_jax.convert.export_files import WEIGHTS, Content, Target, card, notes, target
from aqaa_jax.convert.part_source import PartSource
from aqaa_jax.convert.progress import Progress
from aqaa_jax.convert.record import read_records
from aqaa_jax.version import __version__

JOURNAL = f"export{hashes.SUFFIX}"
CARD = "README.md"
Say = Callable[[str], None]


class Export(NamedTuple):
    """What will be written: the parts' files, the card, the largest tensor in memory, what identifies the source."""

    targets: tuple[Target, ...]
    card: bytes
    largest: int  # bytes
    source: str
    notes: tuple[str, ...]

    @property
    def total(self) -> int:
        """Bytes of all tensors."""
        return sum(nbytes(tensor) for t in self.targets for tensor in t.weights.plan.values())


def plan(directory: str | Path, parts: Sequence[str] = (), dtype: str = "bfloat16") -> Export:
    """Check a model folder against its configuration by headers alone, and say what its export is.

    ``parts``: default, those whose weights are there. Raises ``FileNotFoundError`` or ``ValueError`` naming the file,
    the tensor or the option that is wrong.
    """
    directory, unknown = Path(directory), sorted(set(parts) - set(PARTS))
    if unknown:
        raise ValueError(f"unknown part {unknown[0]!r}; expected some of {', '.join(PARTS)}")
    header.check_float(dtype)
    config, there = _present(directory)
    chosen = tuple(p for p in PARTS if (p in parts if parts else p in there))
    if not chosen:
        raise FileNotFoundError(f"{directory}: holds no weights of {', '.join(PARTS)}")
    sources = {part: PartSource(directory, config, part) for part in chosen}
    return Export(
        targets=tuple(target(part, config, directory, source, dtype) for part, source in sources.items()),
        card=card(config, chosen, __version__),
        largest=max(source.largest for source in sources.values()),
        source=_fingerprint(directory, dtype),
        notes=tuple(notes(config, chosen)),
    )


def write(export: Export, destination: str | Path, *, max_bytes: int = 5 * 10**9, say: Say) -> None:
    """Write an export into ``destination``, going on where an earlier run of the same one stopped.

    The decoder comes last. Raises ``ValueError`` if the folder holds anything else, ``OSError`` if the disk is too
    small (before anything is written).
    """
    destination = Path(destination)
    done = _begun(export, destination)
    have = [*destination.glob("*.safetensors"), *(destination / one.path for one in export.targets if one.format)]
    shards.check_space(destination, export.total - sum(p.stat().st_size for p in have if p.is_file()))
    atomic.write_json(destination / JOURNAL, {"source": export.source, "files": done})
    for killed in destination.rglob(".*.part"):
        killed.unlink()
    progress = Progress("export", export.total, say)
    for one in sorted(export.targets, key=lambda t: t.part == "decoder"):
        for path in one.after:
            (destination / path).unlink(missing_ok=True)
        _write_files(one.before, destination)
        _write_weights(one, export, destination, done, max_bytes, progress)
        if one.part == "decoder":
            _write_files({CARD: lambda: export.card}, destination)
        _write_files(one.after, destination)


def verify(export: Export, destination: str | Path, *, say: Say) -> int:
    """Compare every tensor and small file of ``destination`` with what the source gives; the number of tensors.

    Raises ``FileNotFoundError`` or ``ValueError`` naming the first file, and tensor, that is missing or differs.
    """
    destination, count = Path(destination), 0
    progress = Progress("verify", export.total, say)
    for one in export.targets:
        for path, content in {**one.before, **one.after}.items():
            if not (destination / path).is_file():
                raise FileNotFoundError(f"{destination / path}: missing, so this is not a whole export")
            if (destination / path).read_bytes() != content():
                raise ValueError(f"{destination / path}: differs from what the source gives")
        for name, stored in _stored(one, destination):
            if _digest(stored) != _digest(map(_bytes, one.weights.read(name))):
                raise ValueError(f"{destination / one.path}: tensor {name!r} differs from the source")
            progress(nbytes(one.weights.plan[name]))
            count += 1
    return count


def report(export: Export, destination: str | Path) -> str:
    """The plan in words, and whether the disk has room for it."""
    lines = [f"{'part':12}{'tensors':>8}{'parameters':>17}{'MB':>11}  files"]
    for one in export.targets:
        tensors = one.weights.plan.values()
        parameters = sum(int(np.prod(t.shape, dtype=np.int64)) for t in tensors)
        files = ", ".join(["model-*.safetensors" if one.part == "decoder" else one.path, *one.before, *one.after])
        lines.append(f"{one.part:12}{len(tensors):8}{parameters:17,}{sum(map(nbytes, tensors)) / 1e6:11,.1f}  {files}")
    existing = next(p for p in [Path(destination).absolute(), *Path(destination).absolute().parents] if p.exists())
    free, needed = shutil.disk_usage(existing).free, export.total
    lines.append(f"to write {needed / 1e9:.3f} GB, {free / 1e9:.3f} GB free{'' if free > needed else ': too little'}")
    bound = (3 * export.largest + 10**9) / 1e9
    lines.append(f"memory: at most {bound:.2f} GB (largest tensor {export.largest / 1e9:.3f} GB)")
    return "\n".join([*lines, *(f"note: {note}" for note in export.notes)])


def _present(directory: Path) -> tuple[SystemConfig, list[str]]:
    """Configuration and parts of a model folder, or of a folder to which only some parts have been imported yet."""
    records = read_records(directory)
    if (directory / CONFIG).is_file() or not records:
        return read_config(directory), [p for p in PARTS if list(directory.glob(f"{p}*.safetensors"))]
    return compose(SystemConfig(), {part: record["config"] for part, record in records.items()}), list(records)


def _fingerprint(directory: Path, dtype: str) -> str:
    """What must not change between the runs of one export: sizes and times of the source, dtype, version."""
    names = (CONFIG, TEXT_MODEL, SPEAKER_MODEL)
    files = sorted(p for p in directory.iterdir() if p.suffix == ".safetensors" or p.name in names)
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(repr((stats, dtype, __version__)).encode()).hexdigest()


def _begun(export: Export, destination: Path) -> dict[str, str]:
    """Files that an earlier run of this export finished; refuses a folder that holds something else."""
    journal = destination / JOURNAL
    if destination.exists() and not destination.is_dir():
        raise NotADirectoryError(f"{destination}: is a file; expected a folder to write to")
    if not destination.exists() or not any(destination.iterdir()):
        return {}
    if not journal.is_file():
        raise ValueError(f"{destination}: is not empty and not an export; expected a new folder")
    if _source_of(journal) != export.source:
        raise ValueError(
            f"{destination}: holds an export of another model or dtype; remove it or choose another folder"
        )
    return hashes.read(journal)


def _source_of(journal: Path) -> str | None:
    try:
        return json.loads(journal.read_text())["source"]
    except (ValueError, KeyError, TypeError):
        return None


def _whole(one: Target, destination: Path, done: dict[str, str]) -> bool:
    path = destination / one.path
    return path.is_file() and one.path in done and hashes.sha256(path) == done[one.path]


def _write_weights(
    one: Target, export: Export, destination: Path, done: dict[str, str], max_bytes: int, progress: Progress
) -> None:
    plan, read = one.weights
    if one.format is None:  # shards, which have a journal of their own
        shards.write_shards(destination, plan, read, max_bytes=max_bytes, progress=progress, source=export.source)
        return
    path = destination / one.path
    if _whole(one, destination, done):
        progress(sum(map(nbytes, plan.values())))
        return
    one.format.write(path, plan, read, progress)
    done[one.path] = hashes.sha256(path)
    atomic.write_json(destination / JOURNAL, {"source": export.source, "files": done})


def _write_files(files: Mapping[str, Content], destination: Path) -> None:
    for path, content in files.items():
        with atomic.written(destination / path) as part:
            part.write_bytes(content())


def _stored(one: Target, destination: Path) -> Iterator[tuple[str, Iterable[bytes | memoryview]]]:
    path, plan = destination / WEIGHTS[one.part], one.weights.plan
    if one.format is not None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing, so this is not a whole export")
        yield from one.format.read_raw(path, plan)
        return
    reader = shards.ShardReader(path)
    for name, tensor in plan.items():
        if reader.shapes.get(name) != tensor:
            raise ValueError(f"{path}: tensor {name!r} is {reader.shapes.get(name)}, expected {tensor}")
        yield name, [_bytes(reader.read(name))]


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _digest(pieces: Iterable[bytes | memoryview]) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()
