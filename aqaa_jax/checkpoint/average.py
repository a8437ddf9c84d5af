"""Weighted means of checkpoints, computed piece by piece (AQAA paper, section 3.4, Eq. 3).

A *source* has ``shapes`` and ``read(name, box)``: a file, a saved step, or another source seen differently. The mean of
sources is a source again, so whoever writes one needs to hold no more than the box at hand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from aqaa_jax.checkpoint.files import SCALE, int8_rows, stored_weights

Box = tuple[slice, ...]
SLICE = 1 << 22  # elements worked on at a time


class Source(Protocol):
    """Named tensors that can be read in part."""

    @property
    def shapes(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Name -> shape and dtype."""
        ...

    def read(self, name: str, rows: Box, /) -> np.ndarray:
        """The box (one slice per dimension, step one) of the tensor ``name``."""
        ...


class Input(NamedTuple):
    """A source, how much it weighs, and what errors call it."""

    label: str
    weight: float
    source: Source


def shares(weights: Sequence[float]) -> list[float]:
    """``weights`` divided by their sum. Raises ``ValueError`` for a negative or infinite one, or if all are zero."""
    for weight in weights:
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weight {weight:g}: expected a number of at least 0")
    total = math.fsum(weights)
    if total == 0:
        raise ValueError("the weights add up to 0; expected at least one above 0")
    return [weight / total for weight in weights]


def cell(shape: Sequence[int], limit: int, chunk: Sequence[int] | None = None) -> tuple[int, ...]:
    """The shape of the boxes that tile ``chunk`` (default: all of ``shape``) with at most ``limit`` elements each.

    Leading dimensions are cut first, so that a box is one run of a row-major array. Where the tensor has several
    chunks along a dimension, the size divides the chunk's: boxes form one regular grid.
    """
    out = list(shape if chunk is None else chunk)
    for axis, size in enumerate(out):
        inner = math.prod(out[axis + 1 :])
        if size * inner <= limit or size <= 1:
            continue
        fitting = max(limit // inner, 1) if inner else size
        if size < shape[axis]:
            fitting = next(d for d in range(fitting, 0, -1) if size % d == 0)
        out[axis] = fitting
    return tuple(out)


def boxes(shape: Sequence[int], limit: int, chunk: Sequence[int] | None = None) -> Iterator[Box]:
    """Boxes of at most ``limit`` elements that make up ``shape``, chunk after chunk, each in row-major order."""
    if 0 in shape:
        yield tuple(slice(0, size) for size in shape)
        return
    chunk = tuple(shape if chunk is None else chunk)
    size = cell(shape, limit, chunk)
    for start in itertools.product(*(range(0, s, c) for s, c in zip(shape, chunk, strict=True))):
        stop = [min(a + c, s) for a, c, s in zip(start, chunk, shape, strict=True)]
        for low in itertools.product(*(range(a, b, c) for a, b, c in zip(start, stop, size, strict=True))):
            yield tuple(slice(a, min(a + c, b)) for a, c, b in zip(low, size, stop, strict=True))


def runs(source: Source, name: str, limit: int = SLICE) -> Iterator[np.ndarray]:
    """The elements of a tensor in row-major order, flat, at most ``limit`` at a time (or one run of the last axis)."""
    shape = source.shapes[name].shape
    for box in boxes(shape, max(limit, *shape[-1:], 1)):
        yield np.asarray(source.read(name, box)).reshape(-1)


def is_float(dtype: Any) -> bool:
    """Whether a tensor of ``dtype`` is averaged; any other has to be equal in all inputs."""
    return bool(jnp.issubdtype(dtype, jnp.floating))


def check_alike(inputs: Sequence[Input]) -> None:
    """Raise ``ValueError`` naming the input and the first tensor that is missing, unexpected, misshapen or mistyped.

    Float dtypes may differ from input to input, others not.
    """
    first = inputs[0]
    for label, _, source in inputs[1:]:
        missing = sorted(set(first.source.shapes) - set(source.shapes))
        unexpected = sorted(set(source.shapes) - set(first.source.shapes))
        if missing:
            raise ValueError(f"{label}: tensor {missing[0]!r} of {first.label} is missing ({len(missing)} in all)")
        if unexpected:
            raise ValueError(f"{label}: tensor {unexpected[0]!r} is not in {first.label} ({len(unexpected)} in all)")
        for name, tensor in source.shapes.items():
            like = first.source.shapes[name]
            if tuple(tensor.shape) != tuple(like.shape):
                raise ValueError(
                    f"{label}: tensor {name!r} has shape {tuple(tensor.shape)}, expected {tuple(like.shape)} "
                    f"as in {first.label}"
                )
            if tensor.dtype != like.dtype and not (is_float(tensor.dtype) and is_float(like.dtype)):
                raise ValueError(
                    f"{label}: tensor {name!r} has dtype {tensor.dtype}, expected {like.dtype} as in {first.label}"
                )


class Mean:
    """The mean of ``inputs`` by weight, as a source.

    Float tensors are summed in ``accumulate`` (float64 where an input is) and rounded once, to ``dtype`` or else to the
    dtype of the first input that weighs anything. A box that all these inputs hold bit for bit comes out bit for bit;
    inputs of weight zero are checked for names and shapes and never read. Other tensors must be equal.

    Raises ``ValueError`` as ``shares`` and ``check_alike`` do, and in ``read`` for unequal tensors that are not float
    and for a finite mean that ``dtype`` cannot hold.
    """

    def __init__(self, inputs: Sequence[Input], *, dtype: Any = None, accumulate: Any = np.float32):
        parts = zip(shares([x.weight for x in inputs]), inputs, strict=True)
        check_alike(inputs)
        self._parts = [(share, x) for share, x in parts if share]
        self._accumulate = np.dtype(accumulate)
        self.shapes = {
            name: jax.ShapeDtypeStruct(x.shape, dtype) if dtype is not None and is_float(x.dtype) else x
            for name, x in self._parts[0][1].source.shapes.items()
        }

    def read(self, name: str, rows: Box) -> np.ndarray:
        """One box of the mean."""
        (share, first), *others = self._parts
        start = np.asarray(first.source.read(name, rows))
        exact = not is_float(start.dtype)
        double = any(x.source.shapes[name].dtype == np.float64 for _, x in self._parts)
        wide = np.dtype(np.float64) if double else self._accumulate
        alike, total = True, None
        for other_share, other in others:
            block = np.asarray(other.source.read(name, rows))
            alike = alike and _same_bits(start, block)
            if exact and not alike:
                raise ValueError(f"{other.label}: tensor {name!r} ({block.dtype}) differs from that of {first.label}")
            if exact:
                continue
            if total is None:
                total = np.multiply(start.astype(wide), wide.type(share))
            total += np.multiply(block.astype(wide), wide.type(other_share))
        return _rounded(start if alike or total is None else total, self.shapes[name].dtype, name)


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype != b.dtype:
        return False
    bits = [np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b)]
    return np.array_equal(bits[0], bits[1])


def _rounded(values: np.ndarray, dtype: Any, name: str) -> np.ndarray:
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        out = values.astype(dtype)
    if not np.array_equal(np.isfinite(out), np.isfinite(values)):
        largest = np.abs(values[np.isfinite(values)]).max()
        raise ValueError(f"tensor {name!r}: a value of {largest:g} does not fit into {np.dtype(dtype)}")
    return out


class Unpacked:
    """A ``ShardReader`` or ``Saved`` as a model sees it (``files.stored_weights``): int8 rows are the float32 tables
    they stand for, and layers stored apart are the stack of that name where ``names`` has it.

    Raises ``ValueError`` naming the file and a scale or a layer of the wrong shape.
    """

    def __init__(self, source: Any, names: Collection[str] = ()):
        self._weights = stored_weights(source, names)
        self.shapes = {name: weight.struct for name, weight in self._weights.items()}
        self.tables = [n for n in self.shapes if n in source.shapes and n + SCALE in source.shapes.keys() - self.shapes]

    def read(self, name: str, rows: Box) -> np.ndarray:
        """One box."""
        return self._weights[name].read(rows)


class Int8Tables:
    """The inverse view: ``tables`` of a real source as int8 rows, beside their scales. Boxes hold whole rows."""

    def __init__(self, source: Source, tables: Sequence[str]):
        self._source, self._tables = source, set(tables)
        self.shapes = {}
        for name, x in source.shapes.items():
            self.shapes[name] = jax.ShapeDtypeStruct(x.shape, np.int8) if name in self._tables else x
            if name in self._tables:
                self.shapes[name + SCALE] = jax.ShapeDtypeStruct((*x.shape[:-1], 1), np.float32)

    def read(self, name: str, rows: Box) -> np.ndarray:
        """One box; a table is computed for its values and again for its scales."""
        if name in self._tables:
            return int8_rows(self._source.read(name, rows))[0]
        table = name.removesuffix(SCALE)
        if table not in self._tables or name in self._source.shapes:
            return self._source.read(name, rows)
        shape = self._source.shapes[table].shape
        many = max(SLICE // math.prod(shape[1:]), 1)  # a block of scales stands for a far larger block of the table
        starts = range(rows[0].start, rows[0].stop, many)
        blocks = ((slice(a, min(a + many, rows[0].stop)), *rows[1:-1], slice(0, shape[-1])) for a in starts)
        return np.concatenate([int8_rows(self._source.read(table, block))[1] for block in blocks])
