"""The device mesh shared by codec, decoder and vocoder: one slice of accelerators, or several of them.

All axes are of type Auto: the compiler propagates shardings between the places that ``constrain`` names, and
``per_shard`` goes by hand where it must not choose. Explicit axes would have every product of our layers spell its
output sharding (``nn/project.py`` merges sharded dimensions, which explicit types refuse), in models that also run
without a mesh.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from aqaa_jax.config import MeshConfig
from aqaa_jax.sharding.chips import CHIPS
from aqaa_jax.sharding.rules import DATA, FSDP, MESH_AXES
from aqaa_jax.sharding.xla_flags import generation

DCN_AXES = {"dcn_data": DATA, "dcn_fsdp": FSDP}  # numbers of slices -> the mesh axis that they prolong
Device = Any  # jax.Device, which type checkers take for a value
_TYPES = (AxisType.Auto,) * len(MESH_AXES)


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Device] | None = None) -> Mesh:
    """The mesh of ``config`` over ``devices`` (default: all of this process set), laid along their physical torus.

    ``devices`` may be those of a ``jax.experimental.topologies`` description. Other devices than
    TPUs are cut into equal slices in their order. A mesh of one slice smaller than ``devices`` takes the first
    ones, as long as one process owns all of them. Raises ``ValueError`` naming the sizes if they do not fit.
    """
    config = config or MeshConfig()
    devices = list(jax.devices() if devices is None else devices)
    slices = _slices(devices, config)
    sizes = resolve(config, len(slices[0]), len(slices))
    within = tuple(getattr(sizes, name) for name in MESH_AXES)
    needed = math.prod(within)
    if needed < len(slices[0]) and (len(slices) > 1 or len({d.process_index for d in devices}) > 1):
        raise ValueError(f"{describe(sizes)} takes {needed} of the {len(slices[0])} devices of a slice; expected all")
    blocks = np.stack([_along_torus(within, part[:needed]) for part in slices])
    # (slices of data, slices of fsdp, data, fsdp, ...): each number of slices goes before the axis that it prolongs.
    grid = blocks.reshape(sizes.dcn_data, sizes.dcn_fsdp, *within).swapaxes(1, 2)
    whole = (sizes.dcn_data * sizes.data, sizes.dcn_fsdp * sizes.fsdp, *within[2:])
    return Mesh(grid.reshape(whole), MESH_AXES, axis_types=_TYPES)


def ring_of(mesh: Mesh, names: Sequence[str]) -> int:
    """Devices in each of the rings that the devices along the axes ``names``, in their order, fall into; 1: no ring.

    The neighbour in a ring is the device so many places on that there are as many rings as places. On TPUs it is the
    next chip along a closed axis of the torus; other devices are all one ring.
    """
    along = np.moveaxis(mesh.devices, [mesh.axis_names.index(name) for name in names], range(len(names)))
    along = along.reshape(math.prod(along.shape[: len(names)]), -1)
    known = CHIPS.get(generation(along[0, 0].device_kind))
    if known is None:
        return len(along)
    where = np.array([[(getattr(d, "slice_index", 0), *d.coords) for d in row] for row in along])
    torus = np.max([d.coords for d in mesh.devices.flat], axis=0) + 1
    for axis, size in enumerate(torus.tolist(), start=1):
        if size % known.wrap == 0 and len(along) % size == 0:
            steps = np.abs(np.roll(where, -(len(along) // size), axis=0) - where)
            hops = np.minimum(steps[..., axis], size - steps[..., axis])
            if np.all(hops == 1) and np.all(np.delete(steps, axis, axis=-1) == 0):
                return size
    return 1


def abstract_mesh(config: MeshConfig) -> AbstractMesh:
    """The mesh of ``config`` without devices, to work out sizes. Raises ``ValueError`` for a size below 1."""
    if -1 in dataclasses.astuple(config):
        raise ValueError(f"{describe(config)}: -1 needs devices to count; expected sizes of at least 1")
    _check(config)
    whole = dataclasses.replace(config, data=config.data * config.dcn_data, fsdp=config.fsdp * config.dcn_fsdp)
    return AbstractMesh(tuple(getattr(whole, name) for name in MESH_AXES), MESH_AXES, axis_types=_TYPES)


def resolve(config: MeshConfig, devices: int, slices: int = 1) -> MeshConfig:
    """``config`` with -1 worked out for ``slices`` slices of ``devices`` devices each.

    Raises ``ValueError`` naming the sizes if they need more devices, other slices, or leave a remainder.
    """
    _check(config)
    within = _fill(config, MESH_AXES, devices, "devices of a slice")
    across = _fill(config, tuple(DCN_AXES), slices, "slices")
    sizes = MeshConfig(**within, **across)
    if math.prod(within.values()) > devices:
        raise ValueError(f"{describe(sizes)} needs {math.prod(within.values())} devices, {devices} are available")
    if math.prod(across.values()) != slices:
        raise ValueError(f"{describe(sizes)} spans {math.prod(across.values())} slices, the devices are of {slices}")
    return sizes


def parse_mesh(text: str) -> MeshConfig:
    """``"fsdp=8,tensor=4"`` as a config; what is not named is 1. Raises ``ValueError`` naming the text."""
    try:
        pairs = [(name.strip(), int(size)) for name, size in (pair.split("=") for pair in text.split(",") if pair)]
        config = MeshConfig(**dict(pairs))
        if len(dict(pairs)) < len(pairs):
            raise ValueError(text)
    except (TypeError, ValueError):
        names = ", ".join(f.name for f in dataclasses.fields(MeshConfig))
        raise ValueError(f"mesh is {text!r}; expected sizes by name, like fsdp=8,tensor=4, of {names}") from None
    _check(config)
    return config


def describe(config: MeshConfig) -> str:
    """The inverse of ``parse_mesh``, as errors and reports tell a mesh: ``"mesh fsdp=8,tensor=4"``."""
    sizes = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return "mesh " + (",".join(f"{name}={size}" for name, size in sizes.items() if size != 1) or "of one device")


def _check(config: MeshConfig) -> None:
    for names in (MESH_AXES, tuple(DCN_AXES)):
        sizes = [getattr(config, name) for name in names]
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(f"{describe(config)}: expected sizes of at least 1, or -1 on one of {names}")


def _fill(config: MeshConfig, names: Sequence[str], total: int, what: str) -> dict[str, int]:
    sizes = {name: getattr(config, name) for name in names}
    known = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values() and total % known:
        raise ValueError(f"{describe(config)}: {total} {what} do not divide by {known}")
    return {name: total // known if size == -1 else size for name, size in sizes.items()}


def _slices(devices: list[Device], config: MeshConfig) -> list[list[Device]]:
    """The devices of each slice."""
    if devices[0].platform == "tpu":  # the devices of a description of one slice have no number of it
        numbers = [getattr(d, "slice_index", 0) for d in devices]
        return [[d for d, n in zip(devices, numbers, strict=True) if n == one] for one in sorted(set(numbers))]
    _check(config)
    count = config.dcn_data * config.dcn_fsdp
    if count < 0 or len(devices) % count:
        raise ValueError(f"{describe(config)}: {len(devices)} {devices[0].platform} devices do not make {count} slices")
    size = len(devices) // count
    return [devices[i * size : (i + 1) * size] for i in range(count)]


def _along_torus(within: tuple[int, ...], devices: list[Device]) -> np.ndarray:
    """Devices so that each mesh axis is whole axes of the torus if that can be, else parts of them."""
    try:
        return mesh_utils.create_device_mesh(within, devices)
    except NotImplementedError:
        grid = mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    for axis, size in enumerate(within):
        along = np.moveaxis(grid, axis, 0).reshape(size, -1)[:, 0]
        grid = np.take(grid, _whole_axes_first(along, devices), axis)
    return grid


def _whole_axes_first(along: np.ndarray, devices: list[Device]) -> list[int]:
    """The places of ``along`` a mesh axis in the order of their coordinates, those on whole axes of the torus, the
    longest of them, first: these make rings (``ring_of``)."""
    coords, sizes = np.array([d.coords for d in along]), np.max([d.coords for d in devices], axis=0) + 1
    whole = [len({*column}) == size for column, size in zip(coords.T.tolist(), sizes, strict=True)]
    order = sorted(range(len(sizes)), key=lambda t: (not whole[t], -sizes[t]))
    return sorted(range(len(along)), key=lambda place: tuple(coords[place, order]))
