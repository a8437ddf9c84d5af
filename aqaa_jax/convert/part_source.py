"""The weights of one part of a model folder, tensor by tensor and layer by layer, whatever form the folder has."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from aqaa_jax.checkpoint.files import stored_weights
from aqaa_jax.checkpoint.folder import PARTS
from aqaa_jax.checkpoint.header import nbytes
from aqaa_jax.checkpoint.shards import ShardReader
from aqaa_jax.checkpoint.tree import check_weights, named_weights
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
        expected = _expected(config, part)
        self._stored = stored_weights(ShardReader(self.path), expected)
        check_weights(expected, {name: weight.struct for name, weight in self._stored.items()}, str(self.path))

    def shape(self, name: str, index: Index = ()) -> tuple[int, ...]:
        """Of a weight, or of one element of a stacked one."""
        return tuple(self._stored[name].struct.shape)[len(index) :]

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor that ``read`` gives in one piece."""
        return max(
            nbytes(weight.struct) // (weight.struct.shape[0] if ".blocks." in f".{name}" else 1)
            for name, weight in self._stored.items()
        )

    def read(self, name: str, index: Index = (), rows: slice | None = None) -> np.ndarray:
        """A weight, a layer of a stacked one or an expert of a layer, or some ``rows`` of it; int8 rows as float32."""
        box = [slice(i, i + 1) for i in index] + [slice(None)] * len(self.shape(name, index))
        if rows is not None:
            box[len(index)] = rows
        value = self._stored[name].read(tuple(box))
        return value.reshape(value.shape[len(index) :])
