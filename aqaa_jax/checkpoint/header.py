"""The header of a safetensors file: what it holds and where, checked against the file before a tensor is read."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_NAMES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
FLOATS = ("bfloat16", "float16", "float32")  # what float weights may be stored as
DTYPES = {name: np.dtype(dtype) for name, dtype in _NAMES.items()}
_NAME_OF = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST = 100_000_000  # bytes; the limit of the format's own reader
_METADATA = "__metadata__"


class Stored(NamedTuple):
    """One tensor of a file: shape and dtype, and the byte of the file it starts at."""

    struct: jax.ShapeDtypeStruct
    offset: int


def check_float(dtype: str) -> None:
    """Raise ``ValueError`` unless ``dtype`` names one of ``FLOATS``."""
    if dtype not in FLOATS:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(FLOATS)}")


def nbytes(tensor: jax.ShapeDtypeStruct) -> int:
    """Bytes of a tensor of this shape and dtype."""
    return math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize


def encode(tensors: Mapping[str, jax.ShapeDtypeStruct], metadata: Mapping[str, str] | None = None) -> bytes:
    """The first bytes of a file that holds ``tensors`` one after the other, in order.

    Raises ``ValueError`` naming a tensor whose dtype the format does not have.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + nbytes(tensor)
        dtype = np.dtype(tensor.dtype)
        if dtype not in _NAME_OF:
            raise ValueError(f"tensor {name!r} has dtype {dtype}; a safetensors file holds {', '.join(DTYPES)}")
        header[name] = {"dtype": _NAME_OF[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight
    return struct.pack("<Q", len(text)) + text


def read(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name, from its header alone.

    Raises ``FileNotFoundError``, or ``ValueError`` naming the file, and the tensor where one is wrong: a header that
    is none, an unknown dtype, bytes that do not fit the shape, or a file shorter or longer than its header says.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        return _read(path)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None


def _read(path: Path) -> dict[str, Stored]:
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if length > min(size - 8, _LONGEST):
            raise ValueError(f"its header does not fit in its {size} bytes")
        header = json.loads(file.read(length))
    header.pop(_METADATA, None)
    start, end, out = 8 + length, 0, {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"tensor {name!r} has dtype {entry['dtype']}; expected one of {', '.join(DTYPES)}")
        tensor = jax.ShapeDtypeStruct(tuple(entry["shape"]), DTYPES[entry["dtype"]])
        begin, stop = entry["data_offsets"]
        if begin != end or stop - begin != nbytes(tensor):
            raise ValueError(f"tensor {name!r} of shape {tensor.shape} has the bytes {begin} to {stop}")
        if start + stop > size:
            raise ValueError(f"tensor {name!r} ends at byte {start + stop}, the file has {size}: truncated")
        end, out[name] = stop, Stored(tensor, start + begin)
    if start + end != size:
        raise ValueError(f"its tensors end at byte {start + end}, the file has {size}")
    return out
