"""Modules as flat dictionaries of arrays with stable string names, and back.

The name of a weight is its attribute path joined by dots (``blocks.attention.wq``); these names are the
keys of every file this project writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from aqaa_jax.sharding.partition import is_variable

Model = TypeVar("Model", bound=nnx.Module)


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(str(getattr(k, "name", getattr(k, "idx", getattr(k, "key", k)))) for k in path)


def named_weights(model: nnx.Module) -> dict[str, Any]:
    """Name -> array (or ``ShapeDtypeStruct``) of every weight of a real or abstract module."""
    leaves = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_variable)[0]
    return {_name(path): leaf.get_value() for path, leaf in leaves}


def layer_name(name: str, layer: int) -> str:
    """The name under which shards hold one layer of a stacked weight: ``blocks.3.attention.wq``.

    The layer follows the module called ``blocks``. A stack of 88 layers is tens of gigabytes; shards hold its layers
    apart. Raises ``ValueError`` if no module on the path has that name.
    """
    head, found, tail = f".{name}".rpartition(".blocks.")
    if not found:
        raise ValueError(f"weight {name!r} is in no module called 'blocks'; its layers have no names of their own")
    return f"{head}{found}{layer}.{tail}".removeprefix(".")


def check_weights(expected: Mapping[str, Any], weights: Mapping[str, Any], source: str) -> None:
    """Raise ``ValueError`` naming ``source`` and the first missing, unexpected, misshapen or non-numeric tensor."""
    missing = sorted(set(expected) - set(weights))
    unexpected = sorted(set(weights) - set(expected))
    if missing:
        raise ValueError(f"{source}: tensor {missing[0]!r} is missing ({len(missing)} missing in all)")
    if unexpected:
        raise ValueError(f"{source}: unexpected tensor {unexpected[0]!r} ({len(unexpected)} unexpected in all)")
    for name, old in expected.items():
        new = weights[name]
        if tuple(new.shape) != tuple(old.shape):
            raise ValueError(f"{source}: tensor {name!r} has shape {tuple(new.shape)}, expected {tuple(old.shape)}")
        if not jnp.issubdtype(new.dtype, jnp.number):
            raise ValueError(f"{source}: tensor {name!r} has dtype {new.dtype}, expected a number")


def with_weights(model: Model, weights: Mapping[str, Any], *, source: str = "weights") -> Model:
    """``model`` (real or abstract) with its weights replaced by ``weights``, cast to the model's dtypes.

    Arrays that are placed on a mesh stay where they are. Raises ``ValueError`` as ``check_weights``.
    """
    expected = named_weights(model)
    check_weights(expected, weights, source)

    def one(path, leaf):
        name = _name(path)
        return leaf.replace(jnp.asarray(weights[name]).astype(expected[name].dtype))

    return jax.tree_util.tree_map_with_path(one, model, is_leaf=is_variable)
