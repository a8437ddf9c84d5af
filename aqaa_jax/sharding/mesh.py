"""The device mesh shared by codec, decoder and vocoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from aqaa_jax.sharding.rules import MESH_AXES


def make_mesh(shape: Sequence[int] = (1, 1, 1), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A ``(data, fsdp, tensor)`` mesh over ``devices`` (default: the first ones of this process set).

    Raises ``ValueError`` if ``shape`` has the wrong rank or needs more devices than there are.
    """
    _check(shape)
    devices = list(jax.devices() if devices is None else devices)
    needed = math.prod(shape)
    if needed > len(devices):
        raise ValueError(f"mesh shape {tuple(shape)} needs {needed} devices, {len(devices)} are available")
    auto = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(tuple(shape), MESH_AXES, axis_types=auto, devices=devices[:needed])


def abstract_mesh(shape: Sequence[int]) -> AbstractMesh:
    """A ``(data, fsdp, tensor)`` mesh without devices, to work out sizes. Raises ``ValueError`` for a wrong rank."""
    _check(shape)
    return AbstractMesh(tuple(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _check(shape: Sequence[int]) -> None:
    if len(shape) != len(MESH_AXES) or any(size < 1 for size in shape):
        raise ValueError(f"mesh shape {tuple(shape)} does not give a positive size to each of {MESH_AXES}")
