"""What an ONNX file holds, read from its wire format: weights by name and place, nodes with their inputs.

Only tags and lengths are read; weights are skipped over and fetched one at a time later. So a file of any size is
listed at once, and the ``onnx`` package, which loads all of it, is not needed. Field numbers are those of
``onnx.proto`` (Apache-2.0, github.com/onnx/onnx).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_TYPES = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
    16: jnp.bfloat16,
}
_GRAPH, _METADATA = 7, 14  # in ModelProto
_KEY, _TEXT = 1, 2  # in StringStringEntryProto
_NODE, _INITIALIZER = 1, 5  # in GraphProto
_DIMS, _TYPE, _TENSOR_NAME, _RAW = 1, 2, 8, 9  # in TensorProto
_INPUT, _NODE_NAME, _ATTRIBUTE = 1, 3, 5  # in NodeProto
_ATTRIBUTE_NAME, _INTS = 1, 8  # in AttributeProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


class Weight(NamedTuple):
    """Shape and dtype of an initializer, and the byte of the file its values start at (-1: not stored raw)."""

    struct: jax.ShapeDtypeStruct
    offset: int


class Node(NamedTuple):
    """One operation: its inputs by name and its integer-list attributes."""

    inputs: tuple[str, ...]
    ints: dict[str, tuple[int, ...]]


class Graph(NamedTuple):
    """Initializers, nodes and what a writer said about the file, each by name."""

    weights: dict[str, Weight]
    nodes: dict[str, Node]
    metadata: dict[str, str]


def read_graph(path: Path) -> Graph:
    """List an ONNX file. Raises ``FileNotFoundError`` or ``ValueError`` naming the file (and a cut-off tensor)."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    graph = Graph({}, {}, {})
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for number, value in _fields(data, 0, len(data)):
                if number == _GRAPH and isinstance(value, slice):
                    _read_graph(data, value, graph)
                elif number == _METADATA and isinstance(value, slice):
                    fields = _fields(data, value.start, value.stop)
                    pair = {n: data[place].decode() for n, place in fields if isinstance(place, slice)}
                    graph.metadata[pair.get(_KEY, "")] = pair.get(_TEXT, "")
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable ONNX file ({error})") from None
    if not graph.weights:
        raise ValueError(f"{path}: not a readable ONNX file (it holds no weights)")
    return graph


def read_weight(path: Path, name: str, weight: Weight) -> np.ndarray:
    """The values of one initializer. Raises ``ValueError`` if they are not stored as raw bytes in the file."""
    if weight.offset < 0:
        raise ValueError(f"{path}: tensor {name!r} is not stored as raw bytes in the file")
    count = int(np.prod(weight.struct.shape))
    return np.fromfile(path, weight.struct.dtype, count, offset=weight.offset).reshape(weight.struct.shape)


def _read_graph(data: mmap.mmap, span: slice, graph: Graph) -> None:
    for number, value in _fields(data, span.start, span.stop):
        if number == _INITIALIZER and isinstance(value, slice):
            name, weight = _weight(data, value)
            graph.weights[name] = weight
        elif number == _NODE and isinstance(value, slice):
            name, node = _node(data, value)
            graph.nodes[name] = node


def _weight(data: mmap.mmap, span: slice) -> tuple[str, Weight]:
    dims: list[int] = []
    kind, name, raw = 0, "", slice(-1, -1)
    for number, value in _fields(data, span.start, span.stop):
        if number == _DIMS:
            dims += _integers(data, value)
        elif number == _TYPE and isinstance(value, int):
            kind = value
        elif number == _TENSOR_NAME and isinstance(value, slice):
            name = data[value].decode()
        elif number == _RAW and isinstance(value, slice):
            raw = value
    if kind not in _TYPES:
        raise ValueError(f"tensor {name!r} has the unknown data type {kind}")
    struct = jax.ShapeDtypeStruct(tuple(dims), np.dtype(_TYPES[kind]))
    size = int(np.prod(dims)) * struct.dtype.itemsize
    if raw.start >= 0 and raw.stop - raw.start != size:
        raise ValueError(f"tensor {name!r} of shape {tuple(dims)} has {raw.stop - raw.start} bytes, expected {size}")
    return name, Weight(struct, raw.start)


def _node(data: mmap.mmap, span: slice) -> tuple[str, Node]:
    name, inputs, ints = "", [], {}
    for number, value in _fields(data, span.start, span.stop):
        if number == _INPUT and isinstance(value, slice):
            inputs.append(data[value].decode())
        elif number == _NODE_NAME and isinstance(value, slice):
            name = data[value].decode()
        elif number == _ATTRIBUTE and isinstance(value, slice):
            key, values = "", []
            for inner, item in _fields(data, value.start, value.stop):
                if inner == _ATTRIBUTE_NAME and isinstance(item, slice):
                    key = data[item].decode()
                elif inner == _INTS:
                    values += _integers(data, item)
            ints[key] = tuple(values)
    return name, Node(tuple(inputs), ints)


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int | slice]]:
    """(field number, integer or place of the bytes) of one message."""
    while at < end:
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > end:
            raise ValueError(f"a field of {size} bytes at byte {at} goes beyond byte {end}: truncated")
        yield number, slice(at, at + size)
        at += size


def _integers(data: mmap.mmap, value: int | slice) -> list[int]:
    """A repeated integer field: one number, or several packed ones."""
    if isinstance(value, int):
        return [value]
    out, at = [], value.start
    while at < value.stop:
        number, at = _varint(data, at)
        out.append(number)
    return out


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError(f"a number of more than ten bytes at byte {at}")
