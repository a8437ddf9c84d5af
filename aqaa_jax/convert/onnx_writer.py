"""An ONNX file, written tensor by tensor and without the ``onnx`` package.

A message carries its length before its content, and every length follows from the plan. So all but the values is made
first, and values are streamed behind the few bytes that introduce each of them. Field numbers are those of
``onnx.proto`` (Apache-2.0, github.com/onnx/onnx), of which ``onnx_file`` reads what is written here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import jax
import numpy as np

from aqaa_jax import atomic
from aqaa_jax.checkpoint.blocks import write_blocks
from aqaa_jax.checkpoint.header import nbytes

OPSET, IR = 13, 7  # of 2021: every onnxruntime that the published code pins, and all since
LIMIT = 1 << 31  # bytes of a protocol-buffer message
_DATA_TYPES = {"float32": 1, "int32": 6, "int64": 7}
_PIECE = 1 << 24  # bytes read at a time
Dims = Sequence[int | str]  # a size, or the name of one that is known when the graph runs
_Value = int | str | bytes


@dataclasses.dataclass(frozen=True)
class Model:
    """A graph without its weights, which are ``plan``'s: ``write`` and ``read_raw`` are those of ``torch_file``."""

    name: str
    nodes: tuple[bytes, ...]  # made by ``node``
    inputs: tuple[bytes, ...]  # made by ``value``
    outputs: tuple[bytes, ...]
    metadata: Mapping[str, str]

    def write(
        self,
        path: Path,
        plan: Mapping[str, jax.ShapeDtypeStruct],
        read: Callable[[str], Iterable[np.ndarray]],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Write the graph with the tensors of ``plan`` as its initializers, in one step.

        ``read(name)`` gives consecutive row blocks; ``progress`` is told the bytes done since its last call. Raises
        ``ValueError`` naming a tensor whose blocks do not fit the plan, or what ``head`` raises.
        """
        head = self.head(plan)
        with atomic.written(path) as part, part.open("wb") as stream:
            stream.write(head)
            for name, tensor in plan.items():
                stream.write(_introduction(name, tensor))
                write_blocks(name, tensor, read(name), stream.write, progress or (lambda done: None))
            stream.flush()
            os.fsync(stream.fileno())  # on disk before it has its name

    def read_raw(self, path: Path, plan: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Name and bytes, in pieces, of every tensor of a file that ``write`` made from ``plan``; for verification.

        Raises ``ValueError`` naming the file if its graph, or what introduces a tensor, is not the planned one.
        """
        with path.open("rb") as stream:
            _expect(stream, self.head(plan), f"{path}: its graph is not the planned one")
            for name, tensor in plan.items():
                _expect(stream, _introduction(name, tensor), f"{path}: tensor {name!r} is not where it was planned")
                yield name, _pieces(stream, nbytes(tensor))
            if stream.read(1):
                raise ValueError(f"{path}: goes on behind its last tensor")

    def head(self, plan: Mapping[str, jax.ShapeDtypeStruct]) -> bytes:
        """The file up to its first tensor. Raises ``ValueError`` for weights that do not fit into one message."""
        parts = [(1, n) for n in self.nodes] + [(2, self.name)]
        parts += [(11, i) for i in self.inputs] + [(12, o) for o in self.outputs]
        graph = message(*parts)
        size = len(graph) + sum(len(_introduction(n, t)) + nbytes(t) for n, t in plan.items())
        properties = [(14, message((1, key), (2, value))) for key, value in self.metadata.items()]
        head = message((1, IR), (2, "aqaa_jax"), (8, message((1, ""), (2, OPSET))), *properties)
        head += _tag(7, 2) + _varint(size) + graph
        if size + len(head) - len(graph) >= LIMIT:
            raise ValueError(f"graph {self.name!r} has {size / 1e9:.2f} GB; an ONNX file holds less than 2.15 GB")
        return head


def node(kind: str, inputs: Sequence[str], output: str, name: str, **attributes: int | Sequence[int]) -> bytes:
    """One operation; attributes are integers and lists of integers."""
    found = [message((1, k), (3, v), (20, 2)) for k, v in attributes.items() if isinstance(v, int)]
    lists = {k: v for k, v in attributes.items() if not isinstance(v, int)}
    found += [message((1, k), *((8, i) for i in v), (20, 7)) for k, v in lists.items()]
    return message(*((1, i) for i in inputs), (2, output), (3, name), (4, kind), *((5, a) for a in found))


def constant(array: np.ndarray, output: str, name: str) -> bytes:
    """A node that gives ``array``: of a number that is no weight."""
    raw = np.ascontiguousarray(array).tobytes()
    tensor = message(*((1, d) for d in array.shape), (2, _DATA_TYPES[array.dtype.name]), (9, raw))
    return message((2, output), (3, name), (4, "Constant"), (5, message((1, "value"), (5, tensor), (20, 4))))


def value(name: str, dtype: str, dims: Dims) -> bytes:
    """An input or output of the graph."""
    shape = message(*((1, message((1, d) if isinstance(d, int) else (2, d))) for d in dims))
    return message((1, name), (2, message((1, message((1, _DATA_TYPES[dtype]), (2, shape))))))


def message(*fields: tuple[int, _Value]) -> bytes:
    """Fields (number, value) one after the other: integers as varints, text and bytes behind their length."""
    out = []
    for number, content in fields:
        if isinstance(content, int):
            out += [_tag(number, 0), _varint(content)]
        else:
            data = content.encode() if isinstance(content, str) else content
            out += [_tag(number, 2), _varint(len(data)), data]
    return b"".join(out)


def _introduction(name: str, tensor: jax.ShapeDtypeStruct) -> bytes:
    """The bytes of an initializer, and of its place in the graph, before its values."""
    dtype = np.dtype(tensor.dtype).name
    if dtype not in _DATA_TYPES:
        raise ValueError(f"tensor {name!r} has dtype {dtype}; expected {', '.join(_DATA_TYPES)}")
    before = message(*((1, d) for d in tensor.shape), (2, _DATA_TYPES[dtype]), (8, name))
    before += _tag(9, 2) + _varint(nbytes(tensor))
    return _tag(5, 2) + _varint(len(before) + nbytes(tensor)) + before


def _tag(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # a negative number in two's complement
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _expect(stream: IO[bytes], expected: bytes, otherwise: str) -> None:
    if stream.read(len(expected)) != expected:
        raise ValueError(otherwise)


def _pieces(stream: IO[bytes], size: int) -> Iterator[bytes]:
    while size and (piece := stream.read(min(size, _PIECE))):
        size -= len(piece)
        yield piece
