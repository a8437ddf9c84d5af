"""Files for ``torch.load``, written tensor by tensor and without torch.

A ``.pt`` file is a zip archive, stored without compression: ``<stem>/data.pkl`` is a pickled dictionary whose tensors
refer to storages ``0, 1, ...``, and ``<stem>/data/0`` holds the raw little-endian values of the first. The pickle names
only ``collections.OrderedDict``, ``torch._utils._rebuild_tensor_v2`` and storage types, so that ``weights_only=True``
loads it.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

import jax
import jax.numpy as jnp
import numpy as np

from aqaa_jax import atomic
from aqaa_jax.checkpoint.blocks import write_blocks

_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same tensors give the same file


def write(
    path: str | Path,
    plan: Mapping[str, jax.ShapeDtypeStruct],
    read: Callable[[str], Iterable[np.ndarray]],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the tensors of ``plan`` as a state dict, in one step; ``read(name)`` gives consecutive row blocks.

    ``progress`` is told the bytes done since its last call. Raises ``ValueError`` naming a tensor whose dtype has no
    storage type here or whose blocks do not fit the plan.
    """
    path = Path(path)
    pickled = state_pickle(plan)
    with _archive(path) as archive:
        for member, content in (("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n")):
            with archive.open(_member(path, member), "w") as stream:
                stream.write(content)
        for index, (name, tensor) in enumerate(plan.items()):
            with archive.open(_member(path, f"data/{index}"), "w", force_zip64=True) as stream:
                write_blocks(name, tensor, read(name), stream.write, progress or (lambda done: None))


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    with atomic.written(path) as part, part.open("wb") as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            yield archive
        stream.flush()
        os.fsync(stream.fileno())  # on disk before it has its name


def read_raw(path: str | Path, plan: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Name and bytes, in pieces, of every tensor of a file that ``write`` made from ``plan``; for verification.

    Raises ``ValueError`` naming the file if it is not an archive with this plan, and the tensor if one is damaged.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.read(_member(path, "data.pkl").filename) != state_pickle(plan):
                raise ValueError(f"{path}: its data.pkl is not the planned one")
            for index, name in enumerate(plan):
                with archive.open(_member(path, f"data/{index}").filename) as stream:
                    yield name, _pieces(stream, path, name)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path}: not the file that was exported ({error})") from None


def _pieces(stream: IO[bytes], path: Path, name: str) -> Iterator[bytes]:
    try:
        while piece := stream.read(1 << 24):
            yield piece
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: tensor {name!r} is damaged ({error})") from None


def state_pickle(plan: Mapping[str, jax.ShapeDtypeStruct]) -> bytes:
    """The pickle of a dictionary of contiguous CPU tensors, one storage each (protocol 2, as ``torch.save`` writes)."""
    body = [pickle.PROTO, b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    for index, (name, tensor) in enumerate(plan.items()):
        dtype = jnp.dtype(tensor.dtype).name
        if dtype not in _STORAGES:
            raise ValueError(f"tensor {name!r} has dtype {dtype}; expected {', '.join(_STORAGES)}")
        shape = tuple(tensor.shape)
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        storage = [pickle.MARK, _text("storage"), _global("torch", _STORAGES[dtype]), _text(str(index)), _text("cpu")]
        body += [_text(name), _global("torch._utils", "_rebuild_tensor_v2"), pickle.MARK]
        body += [
            *storage,
            _int(math.prod(shape)),
            pickle.TUPLE,
            pickle.BINPERSID,
            _int(0),
            _ints(shape),
            _ints(strides),
        ]
        body += [pickle.NEWFALSE, _global("collections", "OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE]
        body += [pickle.TUPLE, pickle.REDUCE]
    return b"".join([*body, pickle.SETITEMS, pickle.STOP])


def _member(path: Path, name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"{path.stem}/{name}", _EPOCH)


def _text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _int(value: int) -> bytes:
    if value < 1 << 31:
        return pickle.BININT + struct.pack("<i", value)
    data = value.to_bytes(8, "little", signed=True)
    return pickle.LONG1 + bytes([len(data)]) + data


def _ints(values: tuple[int, ...]) -> bytes:
    return pickle.MARK + b"".join(map(_int, values)) + pickle.TUPLE
