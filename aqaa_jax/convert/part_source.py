"""The weights of one part of a model folder, tensor by tensor and layer by layer, whatever form the folder has."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aqaa_jax.checkpoint.files import SCALE
from aqaa_jax.checkpoint.folder import PARTS
from aqaa_jax.checkpoint.shards import ShardReader
from aqaa_jax.checkpoint.tree import layer_name, named_weights
from aqaa_jax.config import SystemConfig
from aqaa_jax.convert.layout import Index
from aqaa_jax.parts import abstract


@functools.lru_cache(maxsize=len(PARTS))  # tracing a large part takes seconds
def _expected(config: SystemConfig, part: str) -> dict[str, Any]:
    return named_weights(abstract(config, part))


class PartSource:
    """Reads what ``checkpoint.files.load_model`` loads, without loading it: only headers until ``read``.

    A stacked weight may be one tensor or one per layer (``tree.layer_name``); a table may be int8 rows with scales.
    Raises ``FileNotFoundError`` or ``ValueError`` naming file and the first missing, unexpected or misshapen tensor.
    """

    def __init__(self, directory: str | Path, config: SystemConfig, part: str):
        self.path = Path(directory) / f"{part}.safetensors"
        self._reader = ShardReader(self.path)
        self._expected = _expected(config, part)
        self._check()

    def shape(self, name: str, index: Index = ()) -> tuple[int, ...]:
        """Of a weight, or of one element of a stacked one."""
        return tuple(self._expected[name].shape)[len(index) :]

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor that ``read`` gives in one piece."""
        return max(self._bytes(name) for name in self._expected)

    def read(self, name: str, index: Index = (), rows: slice | None = None) -> np.ndarray:
        """A weight, a layer of a stacked one or an expert of a layer, or some ``rows`` of it; int8 rows as float32."""
        if not index:
            return self._rows(name, rows)
        layer, *expert = index
        cut = slice(expert[0], expert[0] + 1) if expert else rows
        if name in self._reader.shapes:
            value = self._reader.read(name, slice(layer, layer + 1))[0][slice(None) if cut is None else cut]
        else:
            value = self._rows(layer_name(name, layer), cut)
        return value[0][slice(None) if rows is None else rows] if expert else value

    def _rows(self, name: str, rows: slice | None) -> np.ndarray:
        value = self._reader.read(name, rows)
        return value if value.dtype != np.int8 else value.astype(np.float32) * self._reader.read(name + SCALE, rows)

    def _bytes(self, name: str) -> int:
        stored = self._reader.shapes.get(name)
        if stored is None:
            stored = self._reader.shapes[layer_name(name, 0)]
        elif ".blocks." in f".{name}":
            stored = jax.ShapeDtypeStruct(stored.shape[1:], stored.dtype)
        size = 4 if stored.dtype == np.int8 else stored.dtype.itemsize
        return int(np.prod(stored.shape, dtype=np.int64)) * size

    def _check(self) -> None:
        shapes, left = self._reader.shapes, set(self._reader.shapes)
        for name, weight in self._expected.items():
            wanted = {name: tuple(weight.shape)}
            if name not in shapes and ".blocks." in f".{name}":
                wanted = {layer_name(name, i): tuple(weight.shape[1:]) for i in range(weight.shape[0])}
            for stored, shape in wanted.items():
                if stored not in shapes:
                    raise ValueError(f"{self.path}: tensor {stored!r} is missing")
                if tuple(shapes[stored].shape) != shape:
                    raise ValueError(
                        f"{self.path}: tensor {stored!r} has shape {shapes[stored].shape}, expected {shape}"
                    )
                left.discard(stored)
                if shapes[stored].dtype == np.int8:
                    scale, rows = stored + SCALE, (*shape[:-1], 1)
                    if scale not in shapes or tuple(shapes[scale].shape) != rows:
                        raise ValueError(f"{self.path}: int8 tensor {stored!r} needs {scale!r} of shape {rows}")
                    left.discard(scale)
        if left:
            raise ValueError(f"{self.path}: unexpected tensor {min(left)!r} ({len(left)} unexpected in all)")
