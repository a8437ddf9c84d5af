"""Weights in safetensors shards, read and written piece by piece: no tensor has to be in memory but the one at hand.

Names and index are those of the Hugging Face layout: ``<prefix>-00001-of-00007.safetensors`` and
``<prefix>.safetensors.index.json``. Beside them the writer keeps ``<prefix>.sha256.json``, the hash of each finished
file: what a resumed run trusts and what ``verify`` compares with.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aqaa_jax import atomic
from aqaa_jax.checkpoint import hashes, header
from aqaa_jax.checkpoint.blocks import write_blocks
from aqaa_jax.checkpoint.header import nbytes

SUFFIX = ".safetensors"
INDEX = SUFFIX + ".index.json"
Plan = Mapping[str, jax.ShapeDtypeStruct]
Blocks = Callable[[str], Iterable[np.ndarray]]


class ShardReader:
    """Tensors of a sharded checkpoint or of one file, by name; only headers are read until ``read``.

    ``path`` is a ``.safetensors`` file, or a folder that holds ``<prefix>.safetensors``, an index with its shards, or
    shards without an index. A file name without a file stands for the shards of that prefix. Raises
    ``FileNotFoundError`` or ``ValueError`` naming the file, and the tensor, when a shard is missing or truncated or
    the index does not agree with the shards.
    """

    def __init__(self, path: str | Path, prefix: str = "model"):
        path = Path(path)
        if not path.is_dir():
            path, prefix = path.parent, path.name.removesuffix(SUFFIX)
        self.files = weight_files(path, prefix)
        found = {file: header.read(file) for file in self.files}
        index = path / f"{prefix}{INDEX}"
        if index.is_file():
            _check_index(index, found)
        self._stored = {name: (file, stored) for file, names in found.items() for name, stored in names.items()}
        if len(self._stored) != sum(map(len, found.values())):
            twice = next(n for file, names in found.items() for n in names if self._stored[n][0] != file)
            raise ValueError(f"{path}: tensor {twice!r} is in two shards of {prefix!r}")
        self.shapes = {name: stored.struct for name, (_, stored) in self._stored.items()}

    def read(self, name: str, rows: slice | tuple[slice, ...] | None = None) -> np.ndarray:
        """The tensor ``name``, or a slice of its rows, or one slice per dimension; no more of the file is touched.

        Raises ``ValueError`` naming a tensor that is not there.
        """
        if name not in self._stored:
            raise ValueError(f"{self.files[0].parent}: tensor {name!r} is missing")
        file, (tensor, offset) = self._stored[name]
        if nbytes(tensor) == 0 or tensor.shape == ():  # nothing to map
            raw = np.fromfile(file, tensor.dtype, count=int(np.prod(tensor.shape)), offset=offset)
            return raw.reshape(tensor.shape)[() if rows is None else rows]
        box = rows if isinstance(rows, tuple) else (rows or slice(None),)
        if all(s.indices(size) == (0, size, 1) for s, size in zip(box[1:], tensor.shape[1:], strict=False)):
            start, stop, step = box[0].indices(tensor.shape[0])
            if step == 1:  # plain reads: mapped pages would count as resident memory
                width = nbytes(tensor) // tensor.shape[0]
                count, stop = (max(stop - start, 0) * width) // tensor.dtype.itemsize, max(stop, start)
                raw = np.fromfile(file, tensor.dtype, count=count, offset=offset + start * width)
                return raw.reshape(stop - start, *tensor.shape[1:])
        mapped = np.memmap(file, tensor.dtype, mode="r", offset=offset, shape=tensor.shape)
        return np.array(mapped[box])

    def close(self) -> None:
        """Nothing is held open between reads; here for readers that do hold files."""


def weight_files(directory: Path, prefix: str) -> list[Path]:
    """The files of the weights called ``prefix``. Raises ``FileNotFoundError`` or ``ValueError`` naming a file."""
    whole, index = directory / f"{prefix}{SUFFIX}", directory / f"{prefix}{INDEX}"
    if whole.is_file() and index.is_file():
        raise ValueError(f"{directory}: has both {whole.name} and {index.name}; expected one of them")
    if whole.is_file():
        return [whole]
    shards = sorted(directory.glob(f"{prefix}-*{SUFFIX}"))
    if index.is_file():
        named = sorted({directory / file for file in _weight_map(index).values()})
        for file in named:
            if not file.is_file():
                raise FileNotFoundError(f"{file}: missing, but named by {index}")
        return named
    if not shards:
        raise FileNotFoundError(f"{whole}: no such weights file")
    if any("-of-" in shard.name for shard in shards):  # a writer was interrupted, or the index was not copied
        raise FileNotFoundError(f"{index}: missing, so the {prefix!r} shards beside it are not (known to be) whole")
    return shards


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        if weight_map and all(Path(file).name == file for file in weight_map.values()):
            return weight_map
        reason = "weight_map does not name files beside it"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise ValueError(f"{index}: not an index of shards ({reason})")


def _check_index(index: Path, found: Mapping[Path, Mapping[str, Any]]) -> None:
    weight_map = _weight_map(index)
    for name, file in weight_map.items():
        if name not in found[index.parent / file]:
            raise ValueError(f"{index}: names tensor {name!r} in {file}, which does not hold it")
    for file, names in found.items():
        for name in names:
            if weight_map.get(name) != file.name:
                raise ValueError(f"{file}: holds tensor {name!r}, which {index.name} does not name there")


def plan_shards(plan: Plan, prefix: str, max_bytes: int) -> dict[str, Plan]:
    """File name -> its tensors, in order, each file at most ``max_bytes`` of tensors (or one larger tensor)."""
    groups: list[dict[str, jax.ShapeDtypeStruct]] = []
    room = 0
    for name, tensor in plan.items():
        if not groups or nbytes(tensor) > room:
            groups.append({})
            room = max_bytes
        groups[-1][name] = tensor
        room -= nbytes(tensor)
    return {f"{prefix}-{i:05}-of-{len(groups):05}{SUFFIX}": group for i, group in enumerate(groups, 1)}


def write_shards(
    directory: str | Path,
    plan: Plan,
    read: Blocks,
    *,
    prefix: str = "model",
    max_bytes: int = 5 * 10**9,
    progress: Callable[[int], None] | None = None,
    source: str = "",
    metadata: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write the tensors of ``plan`` in its order, sharded, the index last; returns file name -> sha256.

    ``read(name)`` gives consecutive row blocks that make up the tensor (any number, down to one whole array), or flat
    runs of its row-major elements.
    ``progress`` is told the bytes done since its last call. A file that an earlier run finished is kept if its
    header is the planned one, its recorded hash is that of its bytes, and it came from the same ``source`` (any text
    that identifies the origin). ``metadata`` goes into every header. Raises ``ValueError`` naming the tensor whose
    blocks do not fit the plan, ``OSError`` when the disk is too small (checked before anything is written) or fails; no
    file under a final name is partial.
    """
    return _write(
        Path(directory), plan_shards(plan, prefix, max_bytes), read, prefix, progress, source, metadata, index=True
    )


def write_one(
    directory: str | Path,
    plan: Plan,
    read: Blocks,
    *,
    prefix: str,
    progress: Callable[[int], None] | None = None,
    source: str = "",
    metadata: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """``write_shards`` into the single file ``<prefix>.safetensors`` without an index."""
    return _write(Path(directory), {f"{prefix}{SUFFIX}": plan}, read, prefix, progress, source, metadata, index=False)


def _write(
    directory: Path,
    shards: Mapping[str, Plan],
    read: Blocks,
    prefix: str,
    progress: Callable[[int], None] | None,
    source: str,
    metadata: Mapping[str, str] | None,
    *,
    index: bool,
) -> dict[str, str]:
    # The first to name a bad dtype, before anything is written.
    heads = {file: header.encode(tensors, metadata) for file, tensors in shards.items()}
    tell = progress or (lambda done: None)
    journal = directory / f"{prefix}{hashes.SUFFIX}"
    done = _finished(directory, journal, heads, shards, source)
    stale = [*directory.glob(f"{prefix}-*-of-*{SUFFIX}"), directory / f"{prefix}{SUFFIX}"]
    stale = [file for file in stale if file.name not in done and file.is_file()]
    stale += directory.glob(f".{prefix}*{SUFFIX}.*.part")  # of a killed run
    left = sum(size_of(heads[f], shards[f]) for f in shards if f not in done)
    check_space(directory, left - sum(file.stat().st_size for file in stale))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{prefix}{INDEX}").unlink(missing_ok=True)
    for file in stale:
        file.unlink()
    for file, tensors in shards.items():
        if file in done:
            tell(sum(map(nbytes, tensors.values())))
            continue
        done[file] = _write_file(directory / file, heads[file], tensors, read, tell)
        atomic.write_json(journal, {"source": source, "files": done})
    if index:
        total = sum(nbytes(t) for tensors in shards.values() for t in tensors.values())
        weight_map = {name: file for file, tensors in shards.items() for name in tensors}
        atomic.write_json(directory / f"{prefix}{INDEX}", {"metadata": {"total_size": total}, "weight_map": weight_map})
    return {file: done[file] for file in shards}


def _finished(
    directory: Path, journal: Path, heads: Mapping[str, bytes], shards: Mapping[str, Plan], source: str
) -> dict[str, str]:
    """Files of an earlier run that are whole and the planned ones, with their hashes."""
    recorded = hashes.read(journal) if journal.is_file() else {}
    if not recorded or json.loads(journal.read_text())["source"] != source:
        return {}
    done = {}
    for file, digest in recorded.items():
        path = directory / file
        if file not in heads or not path.is_file() or path.stat().st_size != size_of(heads[file], shards[file]):
            continue
        with path.open("rb") as stream:
            planned = stream.read(len(heads[file])) == heads[file]
        if planned and hashes.sha256(path) == digest:
            done[file] = digest
    return done


def size_of(head: bytes, tensors: Plan) -> int:
    """Bytes of a file with this header and these tensors."""
    return len(head) + sum(map(nbytes, tensors.values()))


def check_space(directory: Path, needed: int) -> None:
    """Raise ``OSError`` unless the file system of ``directory`` (or of what exists of it) has ``needed`` bytes free."""
    existing = next(p for p in [directory.absolute(), *directory.absolute().parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(f"{directory}: {needed / 1e9:.2f} GB to write, {free / 1e9:.2f} GB free")


def _write_file(path: Path, head: bytes, tensors: Plan, read: Blocks, tell: Callable[[int], None]) -> str:
    digest = hashlib.sha256(head)
    with atomic.written(path) as part, part.open("wb") as stream:
        stream.write(head)

        def write(data: Any) -> None:
            digest.update(data)
            stream.write(data)

        for name, tensor in tensors.items():
            write_blocks(name, tensor, read(name), write, tell)
        stream.flush()
        os.fsync(stream.fileno())  # on disk before it has its name
    return digest.hexdigest()


def verify(directory: str | Path, prefix: str) -> dict[str, str]:
    """Read every file of ``prefix`` again and compare with its recorded hash; returns file name -> sha256.

    Raises ``FileNotFoundError`` or ``ValueError`` naming the file that has none or another one.
    """
    directory = Path(directory)
    recorded, found = hashes.read(_journal(directory, prefix)), {}
    for path in weight_files(directory, prefix):
        found[path.name] = hashes.sha256(path)
        if recorded.get(path.name) != found[path.name]:
            raise ValueError(f"{path}: has sha256 {found[path.name]}, written was {recorded.get(path.name)}")
    return found


def _journal(directory: Path, prefix: str) -> Path:
    path = directory / f"{prefix}{hashes.SUFFIX}"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing, so {prefix!r} cannot be verified")
    return path
