"""From declared logical axes to shardings: strict, for every module of the system.

``partitioning(mesh, rules)`` opens a context in which ``constrain`` pins activations and ``per_shard`` runs a function
on each device's pieces; outside of it both leave things as they are, so model code is single-device code.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from aqaa_jax.sharding.axes import BATCH
from aqaa_jax.sharding.mesh import Device
from aqaa_jax.sharding.rules import Rules

Tree = TypeVar("Tree")
FEW = 16  # numbers of no weight, at most, that an optimizer may keep whole on every device


class Context(NamedTuple):
    """Hashable, for it is part of jit's cache key: a function traced in one context is traced again in another."""

    mesh: Mesh
    rules: tuple[tuple[str, tuple[str, ...]], ...]
    manual: tuple[str, ...] = ()  # mesh axes whose devices run apart here: arrays are already pieces along them
    rings: bool = False  # those who add up gradients of weights by hand may pass them round rings of devices

    @property
    def left(self) -> tuple[str, ...]:
        """The mesh axes with more than one device that are still the compiler's."""
        return tuple(a for a in self.mesh.axis_names if a not in self.manual and self.mesh.shape[a] > 1)

    def left_rules(self) -> Rules:
        return {axis: tuple(a for a in over if a in self.left) for axis, over in self.rules}

    def left_mesh(self) -> Any:
        """What shardings are to name: inside of a ``shard_map`` that is not the mesh it was given."""
        return jax.sharding.get_abstract_mesh() if self.manual else self.mesh


_CONTEXT = jax.make_user_context(default_value=None)


@contextlib.contextmanager
def partitioning(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Within this context ``constrain`` maps logical axes through ``rules`` onto ``mesh``."""
    with _CONTEXT(Context(mesh, tuple(sorted(rules.items())))):
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
    entries = _entries(axes, mesh, rules, name=name)
    for axis, dim, entry in zip(axes, shape, entries, strict=True):
        parts = math.prod(mesh.shape[a] for a in entry or ())
        if dim % parts:
            raise ValueError(f"{name}: dimension {axis!r} of size {dim} does not split evenly over {parts} devices")
    return PartitionSpec(*entries)


def _entries(
    axes: Sequence[str | None], mesh: Mesh | AbstractMesh, rules: Rules, *, name: str
) -> list[tuple[str, ...] | None]:
    entries: list[tuple[str, ...] | None] = []
    used: set[str] = set()
    for axis in axes:
        over = () if axis is None else _mesh_axes(axis, mesh, rules, name=f"{name} with axes {tuple(axes)}")
        if repeated := used.intersection(over):
            raise ValueError(f"{name}: mesh axis {sorted(repeated)} used twice by axes {tuple(axes)}")
        used.update(over)
        entries.append(over or None)
    return entries


def _mesh_axes(axis: str, mesh: Mesh | AbstractMesh, rules: Rules, *, name: str) -> tuple[str, ...]:
    """The axes of more than one device that ``axis`` goes over."""
    if axis not in rules:
        raise ValueError(f"{name}: unknown logical axis {axis!r}")
    return tuple(a for a in rules[axis] if mesh.shape[a] > 1)


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

    return jax.tree_util.tree_map_with_path(one, model, is_leaf=is_variable)


def state_shardings(state: Tree, model: Any, mesh: Mesh | AbstractMesh, rules: Rules) -> Tree:
    """A tree like ``state`` (real or abstract) with a ``NamedSharding`` in place of every weight and array.

    ``state`` is any pytree made of ``model``: what hangs at the path of a weight, under whatever path of its own, is
    placed like that weight (moments, averages), a factored moment like the dimensions that it has left; counters and
    other few numbers of the optimizer's own are on every device. Raises ``ValueError`` naming an array that comes from
    no weight, or has another shape.
    """
    declared = {
        jax.tree_util.keystr(path): (leaf.get_metadata()["axes"], leaf.get_value().shape)
        for path, leaf in jax.tree_util.tree_flatten_with_path(model, is_leaf=is_variable)[0]
    }

    def one(path: Any, leaf: Any) -> Any:
        variable, name = isinstance(leaf, nnx.Variable), jax.tree_util.keystr(path)
        value = leaf.get_value() if variable else leaf
        if not jax.tree.leaves(value):  # Optax's mark of a weight that another rule has
            return leaf
        shape = tuple(value.shape)
        ends = (jax.tree_util.keystr(path[i:]) for i in range(len(path)))
        found = next((declared[end] for end in ends if end in declared), None)
        few = math.prod(shape) <= (1 if found else FEW)
        axes = (None,) * len(shape) if few else _axes_left(shape, found)
        if axes is None:
            raise ValueError(f"{name}: an array of shape {shape} comes from no weight of the model")
        place = NamedSharding(mesh, to_spec(axes, shape, mesh, rules, name=name))
        return leaf.replace(place) if variable else place

    return jax.tree_util.tree_map_with_path(one, state, is_leaf=is_variable)


def _axes_left(shape: tuple[int, ...], weight: tuple[Any, Any] | None) -> tuple[str | None, ...] | None:
    """The axes of the dimensions of a weight (axes, shape) that ``shape`` has kept, in order."""
    if weight is None:
        return None
    axes, whole = weight
    kept = itertools.combinations(range(len(whole)), len(shape))
    return next((tuple(axes[i] for i in k) for k in kept if tuple(whole[i] for i in k) == shape), None)


def shard(model: Tree, mesh: Mesh, rules: Rules) -> Tree:
    """``model`` with every weight placed on ``mesh``."""
    return jax.device_put(model, shardings(model, mesh, rules))


def init_sharded(build: Callable[[], Tree], mesh: Mesh, rules: Rules) -> Tree:
    """Run the constructor ``build`` so that each weight is born sharded, never whole on one device."""
    out = shardings(jax.eval_shape(build), mesh, rules)
    return jax.jit(build, out_shardings=out)()


def context() -> Context | None:
    """The mesh and rules of the ``partitioning`` around the caller, or None."""
    return _CONTEXT.value


@contextlib.contextmanager
def by_hand(axes: Sequence[str], *, rings: bool = False) -> Iterator[None]:
    """Within the body of a ``shard_map`` over the mesh ``axes``: what is left of the mesh is the compiler's."""
    here = _CONTEXT.value
    with _CONTEXT(here._replace(manual=(*here.manual, *axes), rings=rings or here.rings)):
        yield


def place_rows(batch: Tree, mesh: Mesh, rules: Rules, *, local: bool = False) -> Tree:
    """The host arrays of a batch on ``mesh``, their first axis split like ``BATCH``; single numbers on every device.

    Every process gives the whole batch and puts its own rows on its devices; with ``local`` it gives only the rows of
    its own devices. Raises ``ValueError`` naming an array whose rows do not split evenly.
    """

    def one(path: Any, x: Any) -> jax.Array:
        x = np.asarray(x, jax.dtypes.canonicalize_dtype(np.asarray(x).dtype))
        axes = (BATCH, *(None,) * (x.ndim - 1)) if x.ndim else ()
        name = f"batch{jax.tree_util.keystr(path)}"
        if local:
            place = NamedSharding(mesh, PartitionSpec(*_entries(axes, mesh, rules, name=name)))
            return jax.make_array_from_process_local_data(place, x)
        place = NamedSharding(mesh, to_spec(axes, x.shape, mesh, rules, name=name))
        return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

    return jax.tree_util.tree_map_with_path(one, batch)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin activation ``x`` to the sharding of its logical ``axes``.

    The identity outside ``partitioning``, and inside ``per_shard``, where arrays are already pieces.
    """
    here = _CONTEXT.value
    if here is None or (here.manual and not here.left):
        return x
    spec = to_spec(axes, x.shape, here.mesh, here.left_rules(), name="activation")
    return jax.lax.with_sharding_constraint(x, NamedSharding(here.left_mesh(), spec))


def mesh_axes(logical: str) -> tuple[str, ...]:
    """The mesh axes with more than one device that ``logical`` is split over: for collectives in ``per_shard``.

    ``()`` outside of ``partitioning``. Raises ``ValueError`` for an unknown logical axis.
    """
    here = _CONTEXT.value
    return () if here is None else _mesh_axes(logical, here.mesh, dict(here.rules), name="mesh_axes")


def by_hand_axes(logical: str) -> tuple[str, ...]:
    """Those of ``mesh_axes`` along which arrays are already pieces here."""
    here = _CONTEXT.value
    return () if here is None else tuple(a for a in mesh_axes(logical) if a in here.manual)


def per_shard(fn: Callable[..., Any], in_axes: Sequence[Any], out_axes: Any) -> Callable[..., Any]:
    """``fn`` to be run on each device with its pieces of the arguments: ``jax.shard_map`` by logical axes.

    ``in_axes`` has one entry per (positional) argument: its logical axes, a pytree of such for an argument that is
    one, or None for an argument that is whole on every device; axes stand for every array below them. ``out_axes``
    alike for the result. Outside ``partitioning``, and inside of another ``per_shard``, it is ``fn`` itself. All
    mesh axes are manual in ``fn``: an argument that is split over an axis not named here is gathered, and what
    ``fn`` returns must be equal over the axes that ``out_axes`` does not name (this is not checked).
    Raises ``ValueError`` as ``to_spec``.
    """

    def run(*arguments: Any) -> Any:
        context = _CONTEXT.value
        if context is None or (context.manual and not context.left):
            return fn(*arguments)
        if len(arguments) != len(in_axes):
            raise ValueError(f"per_shard: {len(arguments)} arguments for in_axes of {len(in_axes)}")
        mesh, rules = context.mesh, context.left_rules()
        axes_left = [a for a in mesh.axis_names if a not in context.manual]

        def specs(axes: Any, below: Any) -> Any:
            names = lambda x: (None,) * jnp.ndim(x) if axes is None else axes  # noqa: E731
            return jax.tree.map(lambda x: to_spec(names(x), jnp.shape(x), mesh, rules, name="per_shard"), below)

        def out_spec(axes: Any) -> PartitionSpec:
            return PartitionSpec() if axes is None else PartitionSpec(*_entries(axes, mesh, rules, name="per_shard"))

        def here(*pieces: Any) -> Any:
            with by_hand(axes_left):
                return fn(*pieces)

        pairs = zip(in_axes, arguments, strict=True)
        in_specs = tuple(jax.tree.map(specs, axes, argument, is_leaf=_is_axes) for axes, argument in pairs)
        out_specs = jax.tree.map(out_spec, out_axes, is_leaf=_is_axes)
        run = jax.shard_map(
            here,
            mesh=context.left_mesh(),
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(axes_left),
            check_vma=False,
        )
        return run(*arguments)

    return run


def is_variable(x: Any) -> bool:
    """A leaf for whoever maps over the weights of a module, or over a tree of its form."""
    return isinstance(x, nnx.Variable)


def _is_axes(x: Any) -> bool:
    return x is None or (type(x) is tuple and all(a is None or isinstance(a, str) for a in x))


def device() -> Device:
    """A device of the mesh in whose context this is traced, else the default one: which chip code is made for."""
    context = _CONTEXT.value
    return jax.devices()[0] if context is None else context.mesh.devices.flat[0]


def split_of(logical: str) -> int:
    """Over how many devices ``logical`` is split; 1 outside of ``partitioning``."""
    context = _CONTEXT.value
    return 1 if context is None else math.prod(context.mesh.shape[a] for a in mesh_axes(logical))
