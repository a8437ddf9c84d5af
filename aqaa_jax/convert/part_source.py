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

    def shape(self, name: str, layer: int | None = None) -> tuple[int, ...]:
        """Of a weight, or of one layer of a stacked one."""
        shape = tuple(self._expected[name].shape)
        return shape if layer is None else shape[1:]

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor that ``read`` gives in one piece."""
        return max(self._bytes(name) for name in self._expected)

    def read(self, name: str, layer: int | None = None, rows: slice | None = None) -> np.ndarray:
        """A weight, one layer of a stacked one, or some ``rows`` of either; int8 rows come out as float32."""
        if layer is None:
            return self._rows(name, rows)
        if name in self._reader.shapes:
            return self._reader.read(name, slice(layer, layer + 1))[0][slice(None) if rows is None else rows]
        return self._rows(layer_name(name, layer), rows)

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
