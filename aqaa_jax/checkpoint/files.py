"""Safetensors files: written atomically, read with a clear error."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.flax import load_file
from safetensors.flax import save_file as _save_file

from aqaa_jax import atomic
from aqaa_jax.atomic import write_json as write_json  # callers find it here too
from aqaa_jax.checkpoint.tree import named_weights, with_weights

Model = TypeVar("Model", bound=nnx.Module)
SCALE = ".scale"  # of a table stored as int8


def save_file(path: str | Path, weights: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write ``weights`` to ``path`` in one step: a reader never sees a partial file."""
    with atomic.written(path) as part:
        _save_file({k: jax.numpy.asarray(v) for k, v in weights.items()}, part, metadata=dict(metadata or {}))
        os.chmod(part, 0o666 & ~_umask())  # the writer makes it private; a model folder is to be shared


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_file(path: str | Path) -> dict[str, Any]:
    """All tensors of a safetensors file. Raises ``FileNotFoundError`` or ``ValueError`` naming the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None


def save_model(
    path: str | Path,
    model: nnx.Module,
    *,
    dtype: Any = None,
    tables: Sequence[str] = (),
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write every weight of ``model``, cast to ``dtype`` if given (float weights only).

    Weights named in ``tables`` (rows by width) are stored as int8 with a float32 scale per row (``name.scale``): half
    of float16 at an error of at most 1/254 of the largest value of a row.
    """
    weights: dict[str, Any] = {}
    for name, value in named_weights(model).items():
        if name in tables:
            weights[name], weights[name + SCALE] = _int8_rows(np.asarray(value, np.float32))
            continue
        cast = dtype is not None and np.issubdtype(np.dtype(value.dtype), np.floating)
        weights[name] = value.astype(dtype) if cast else value
    save_file(path, weights, metadata)


def load_model(path: str | Path, abstract: Model) -> Model:
    """``abstract`` (from ``jax.eval_shape``) filled from a file; strict about names and shapes."""
    weights = read_file(path)
    for name in [n for n, value in weights.items() if value.dtype == np.int8 and n + SCALE in weights]:
        scale, rows = weights.pop(name + SCALE), (*weights[name].shape[:-1], 1)
        if scale.shape != rows:
            raise ValueError(f"{path}: tensor {name + SCALE!r} has shape {scale.shape}, expected {rows}")
        weights[name] = weights[name].astype(np.float32) * scale
    return with_weights(abstract, weights, source=str(path))


def _int8_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = np.maximum(np.abs(table).max(axis=-1, keepdims=True), 1e-30) / 127.0
    return np.round(table / scale).astype(np.int8), scale.astype(np.float32)
