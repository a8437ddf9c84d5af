"""Models in safetensors files and shards: written atomically, read strictly, placed on a mesh as they are read."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx
from safetensors.flax import save_file as _save_file

from aqaa_jax import atomic
from aqaa_jax.checkpoint.shards import ShardReader
from aqaa_jax.checkpoint.tree import check_weights, layer_name, named_weights, with_weights

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
    reader = ShardReader(path)
    return {name: jax.numpy.asarray(reader.read(name)) for name in reader.shapes}


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
            weights[name], weights[name + SCALE] = int8_rows(np.asarray(value, np.float32))
            continue
        cast = dtype is not None and np.issubdtype(np.dtype(value.dtype), np.floating)
        weights[name] = value.astype(dtype) if cast else value
    save_file(path, weights, metadata)


def load_model(path: str | Path, abstract: Model, *, shardings: Any = None) -> Model:
    """``abstract`` (from ``jax.eval_shape``) filled from a file or from shards; strict about names and shapes.

    ``path`` names the file, or stands for the shards of that prefix. With ``shardings`` (a tree like the model, from
    ``sharding.partition.shardings``) every weight is placed as it is read: a process reads the slices of its own
    devices and no more, in the model's dtype.
    """
    expected = named_weights(abstract)
    stored = stored_weights(ShardReader(path), expected)
    check_weights(expected, {name: tensor.struct for name, tensor in stored.items()}, str(path))
    places = None if shardings is None else named_weights(shardings)
    weights = {}
    for name, leaf in expected.items():
        tensor = stored[name]
        if places is None:
            weights[name] = jax.numpy.asarray(tensor.read((slice(None),) * len(leaf.shape)))
        else:
            weights[name] = _placed(tensor, leaf, places[name])
    return with_weights(abstract, weights, source=str(path))


class StoredWeight(NamedTuple):
    """One weight of a model as it is on disk, whatever the form: ``read`` gives a slice per dimension of it."""

    struct: jax.ShapeDtypeStruct
    read: Callable[[tuple[slice, ...]], np.ndarray]


def stored_weights(reader: ShardReader, expected: Collection[str]) -> dict[str, StoredWeight]:
    """What ``reader`` holds under the names of a model: layers stored apart are a stack, int8 rows are scaled."""
    shapes = reader.shapes
    stacks = {name: list(_layers(name, shapes)) for name in expected if name not in shapes}
    scales = {name + SCALE for name, tensor in shapes.items() if tensor.dtype == np.int8}
    used = {layer for layers in stacks.values() for layer in layers} | scales
    out = {name: _one(reader, name, name + SCALE in scales) for name in shapes if name not in used}
    return out | {name: _stack(reader, layers) for name, layers in stacks.items() if layers}


def _layers(name: str, shapes: Collection[str]) -> Iterator[str]:
    if ".blocks." not in f".{name}":
        return
    yield from itertools.takewhile(lambda n: n in shapes, (layer_name(name, i) for i in itertools.count()))


def _one(reader: ShardReader, name: str, scaled: bool) -> StoredWeight:
    tensor = reader.shapes[name]
    if not scaled:
        return StoredWeight(tensor, lambda index: reader.read(name, index))
    scale, rows = reader.shapes.get(name + SCALE), (*tensor.shape[:-1], 1)
    if scale is None:
        raise ValueError(f"{reader.files[0]}: int8 tensor {name!r} has no {name + SCALE!r}, expected of shape {rows}")
    if scale.shape != rows:
        raise ValueError(f"{reader.files[0]}: tensor {name + SCALE!r} has shape {scale.shape}, expected {rows}")
    return StoredWeight(
        jax.ShapeDtypeStruct(tensor.shape, np.float32),
        lambda index: (
            reader.read(name, index).astype(np.float32) * reader.read(name + SCALE, (*index[:-1], slice(None)))
        ),
    )


def _stack(reader: ShardReader, layers: list[str]) -> StoredWeight:
    tensor = reader.shapes[layers[0]]
    for name in layers:
        if reader.shapes[name].shape != tensor.shape:
            raise ValueError(
                f"{reader.files[0].parent}: tensor {name!r} has shape {reader.shapes[name].shape}, "
                f"but layer 0 has {tensor.shape}"
            )
    return StoredWeight(
        jax.ShapeDtypeStruct((len(layers), *tensor.shape), tensor.dtype),
        lambda index: _stacked([reader.read(name, index[1:]) for name in layers[index[0]]]),
    )


def _stacked(layers: list[np.ndarray]) -> np.ndarray:
    return layers[0][None] if len(layers) == 1 else np.stack(layers)  # one layer needs no copy


def _placed(tensor: StoredWeight, leaf: Any, sharding: Any) -> jax.Array:
    read: dict[str, np.ndarray] = {}  # a replica is read once

    def slice_of(index: Any) -> np.ndarray:
        if str(index) not in read:
            read[str(index)] = tensor.read(index).astype(leaf.dtype, copy=False)
        return read[str(index)]

    return jax.make_array_from_callback(leaf.shape, sharding, slice_of)


def int8_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A float32 table as int8 rows and the float32 scale of each row: ``table ~ rows * scale``."""
    scale = np.maximum(np.abs(table).max(axis=-1, keepdims=True), 1e-30) / 127.0
    return np.round(table / scale).astype(np.int8), scale.astype(np.float32)
