"""From declared logical axes to shardings: strict, for every module of the system.

``partitioning(mesh, rules)`` opens a context in which ``constrain`` pins activations; outside of it
``constrain`` is the identity, so model code is single-device code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from aqaa_jax.sharding.rules import Rules

Tree = TypeVar("Tree")
# Mesh and rules as a hashable pair, or None. Part of jit's cache key: a function traced in one context is traced
# again in another.
_CONTEXT = jax.make_user_context(default_value=None)


@contextlib.contextmanager
def partitioning(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Within this context ``constrain`` maps logical axes through ``rules`` onto ``mesh``."""
    with _CONTEXT((mesh, tuple(sorted(rules.items())))):
        yield


def to_spec(
    axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh, rules: Rules, *, name: str
) -> PartitionSpec:
    """The ``PartitionSpec`` of an array whose dimensions carry the logical ``axes``.

    Raises ``ValueError`` naming ``name`` on an unknown axis, a wrong rank, a mesh axis used twice or
    a dimension that does not divide evenly.
    """
    if len(axes) != len(shape):
        raise ValueError(f"{name}: axes {tuple(axes)} name {len(axes)} dimensions, the shape is {tuple(shape)}")
    entries: list[tuple[str, ...] | None] = []
    used: set[str] = set()
    for axis, dim in zip(axes, shape, strict=True):
        if axis is None:
            entries.append(None)
            continue
        if axis not in rules:
            raise ValueError(f"{name}: unknown logical axis {axis!r} in {tuple(axes)}")
        mesh_axes = tuple(a for a in rules[axis] if mesh.shape[a] > 1)
        repeated = used.intersection(mesh_axes)
        if repeated:
            raise ValueError(f"{name}: mesh axis {sorted(repeated)} used twice by axes {tuple(axes)}")
        used.update(mesh_axes)
        parts = 1
        for a in mesh_axes:
            parts *= mesh.shape[a]
        if dim % parts:
            raise ValueError(f"{name}: dimension {axis!r} of size {dim} does not split evenly over {parts} devices")
        entries.append(mesh_axes or None)
    return PartitionSpec(*entries)


def shardings(model: Tree, mesh: Mesh | AbstractMesh, rules: Rules) -> Tree:
    """A tree like ``model`` (real or abstract) with a ``NamedSharding`` in place of every weight."""

    def one(path, leaf):
        name = jax.tree_util.keystr(path)
        if not isinstance(leaf, nnx.Variable):
            raise ValueError(f"{name}: not a declared weight ({type(leaf).__name__})")
        value = leaf.get_value()
        axes = leaf.get_metadata().get("axes")
        if axes is None:
            raise ValueError(f"{name}: weight of shape {value.shape} declares no logical axes")
        spec = to_spec(axes, value.shape, mesh, rules, name=name)
        return leaf.replace(NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(one, model, is_leaf=lambda x: isinstance(x, nnx.Variable))


def shard(model: Tree, mesh: Mesh, rules: Rules) -> Tree:
    """``model`` with every weight placed on ``mesh``."""
    return jax.device_put(model, shardings(model, mesh, rules))


def init_sharded(build: Callable[[], Tree], mesh: Mesh, rules: Rules) -> Tree:
    """Run the constructor ``build`` so that each weight is born sharded, never whole on one device."""
    out = shardings(jax.eval_shape(build), mesh, rules)
    return jax.jit(build, out_shardings=out)()


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin activation ``x`` to the sharding of its logical ``axes``; the identity outside ``partitioning``."""
    context = _CONTEXT.value
    if context is None:
        return x
    mesh, rules = context
    spec = to_spec(axes, x.shape, mesh, dict(rules), name="activation")
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
