"""The gradient by hand: every device works on its own rows, weights are gathered where they are used.

``over_rows`` runs a function on the rows of each device, and the compiler neither gathers a weight nor adds up a
gradient there: ``gathered`` and the sums at the end of ``over_rows`` do. The axes that rows are not split over (tensor,
context) stay the compiler's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from aqaa_jax.sharding import partition
from aqaa_jax.sharding.axes import ACT_EXPERTS, BATCH, EXPERTS, LENGTH

Gather = tuple[tuple[str, ...], ...]  # per dimension, mesh axes


def over_rows(
    fn: Callable[..., tuple[Any, Any]], model: Any, batch: Any, key: jax.Array, *, rings: bool = False
) -> tuple[Any, Any]:
    """``gradients, sums = fn(total, model, batch, key)`` with each device's rows, both added up over devices.

    ``gradients`` is a tree like ``model``, ``sums`` any tree; ``total`` adds a tree up over devices. Every leaf of
    ``batch`` has rows in front; ``key`` differs from device to device. A gradient is added up once, in its own dtype,
    over the devices that hold the same piece of its weight. With ``rings`` those of large weights are added up on
    their way round rings of devices (``nn/ring.py``). Outside ``partitioning``, or where rows are not split,
    ``fn`` gets everything. Raises ``ValueError`` for rows that do not divide.
    """
    context = partition.context()
    rows = partition.mesh_axes(BATCH)
    if context is None or not rows:
        return fn(lambda x: x, model, batch, key)
    mesh, rules = context.mesh, dict(context.rules)
    apart = (*rows, *(a for a in mesh.axis_names if mesh.shape[a] == 1))  # kernels want no axis left if none is in use
    for leaf in jax.tree.leaves(batch):
        partition.to_spec((BATCH, *(None,) * (jnp.ndim(leaf) - 1)), jnp.shape(leaf), mesh, rules, name="batch")

    def spec_of(leaf: nnx.Variable) -> PartitionSpec:
        value, axes = leaf.get_value(), leaf.get_metadata()["axes"]
        spec = partition.to_spec(axes, value.shape, mesh, rules, name="weight")
        return PartitionSpec(*(tuple(a for a in _names(entry) if a in rows) or None for entry in spec))

    specs = jax.tree.map(lambda leaf: leaf.replace(spec_of(leaf)), model, is_leaf=partition.is_variable)

    def here(model: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
        with partition.by_hand(apart, rings=rings):
            key = jax.random.fold_in(key, jax.lax.axis_index(rows))
            gradients, sums = fn(total, model, batch, key)
        return jax.tree.map(added, gradients, specs), total(sums)

    def total(numbers: Any) -> Any:
        """As one vector: the compiler cannot overlap a sum of many small arrays with anything."""
        vector, back = ravel_pytree(numbers)
        return back(jax.lax.psum(vector, rows))

    def added(gradient: jax.Array, spec: PartitionSpec) -> jax.Array:
        split = {name for entry in spec for name in _names(entry)}
        return jax.lax.psum(gradient, tuple(a for a in rows if a not in split))

    in_specs, out_specs = (specs, PartitionSpec(rows), PartitionSpec()), (specs, PartitionSpec())
    run = jax.shard_map(here, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=set(apart), check_vma=False)
    return run(model, batch, key)


def split_over(leaf: nnx.Variable) -> Gather:
    """For each dimension of a weight the mesh axes that it has to be gathered over before use.

    Not the mesh axes over which tokens are sent to experts. A leaf that was sliced out of a stack has lost the leading
    axis of its metadata.
    """
    here = partition.context()
    if here is None or not here.manual:
        return ()
    axes = leaf.get_metadata()["axes"][-leaf.get_value().ndim :]
    sent = partition.mesh_axes(ACT_EXPERTS)
    over = (tuple(a for a in partition.by_hand_axes(axis) if axis != EXPERTS or a not in sent) for axis in axes)
    return tuple(over)


def gather(piece: jax.Array, over: Gather) -> jax.Array:
    """The whole weight from its pieces; in the backward pass its gradient is added up and cut into pieces.

    The first dimension comes last: pieces along it arrive in order, the others have to be put in order in memory.
    """
    for dim, names in reversed(list(enumerate(over))):
        if names:
            piece = jax.lax.all_gather(piece, names, axis=dim, tiled=True)
    return piece


def scatter(whole: jax.Array, over: Gather) -> jax.Array:
    """The transpose of ``gather``: this device's piece of the sum over devices."""
    for dim, names in enumerate(over):
        if names:
            whole = jax.lax.psum_scatter(whole, names, scatter_dimension=dim, tiled=True)
    return whole


class Split(NamedTuple):
    """How a weight in pieces is split, per dimension."""

    axes: tuple[str | None, ...]  # logical
    over: Gather  # mesh axes whose devices have rows or positions of their own: gathered before use
    kept: tuple[str | None, ...]  # logical axes split over other mesh axes (tensor): what a device computes is split


def split(leaf: nnx.Variable) -> Split:
    """Where the pieces of a weight are, those of the compiler's mesh axes too; a layer of a stack has lost an axis."""
    axes = tuple(leaf.get_metadata()["axes"][-leaf.get_value().ndim :])
    apart = {*partition.mesh_axes(BATCH), *partition.mesh_axes(LENGTH)}
    over = tuple(tuple(a for a in partition.mesh_axes(axis) if a in apart) for axis in axes)
    return Split(axes, over, tuple(None if set(partition.mesh_axes(axis)) <= apart else axis for axis in axes))


def gathered(leaf: nnx.Variable, dtype: DTypeLike) -> jax.Array:
    """The value of a weight, whole over devices with rows or positions of their own; cast before it travels.

    On each device's part of what the compiler splits: left to itself, it would give the collective a weight that is
    whole over its own mesh axes (tensor).
    """
    if not any(split_over(leaf)):
        return leaf.get_value()
    axes, over, kept = split(leaf)
    return partition.per_shard(lambda piece: gather(piece, over), (axes,), kept)(leaf.get_value().astype(dtype))


def at_use(leaf: nnx.Variable) -> jax.Array:
    """The value of a weight as a product takes it: split over tensor and experts alone, whole over the rest.

    What a strategy splits over devices that have rows or positions of their own (fsdp) is gathered here, and its
    gradient added up and split again on the way back: the compiler is not to choose between moving weights and
    activations. Left to it, gradients came out wrong on a mesh of 2 x 2 x 2 (jax 0.10.2: XLA's partitioner, resharding
    an activation from rows over two axes to width over one of them). ``leaf`` may be a layer of a scanned stack.
    """
    here, value = partition.context(), leaf.get_value()
    if here is None or here.manual:
        return gather(value, split_over(leaf))
    rules = here.left_rules()
    apart = {*rules[BATCH], *rules[LENGTH]} - {*rules[ACT_EXPERTS]}
    kept = {axis: tuple(a for a in over if a not in apart) for axis, over in rules.items()}
    axes = leaf.get_metadata()["axes"][-value.ndim :]  # in a scan the value has lost the leading one
    spec = partition.to_spec(axes, value.shape, here.mesh, kept, name="weight")
    return jax.lax.with_sharding_constraint(value, NamedSharding(here.mesh, spec))


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """``PartitionSpec`` writes a tuple of one name as that name."""
    return (entry,) if isinstance(entry, str) else entry or ()
