"""TPU topologies by name, described by libtpu on a machine without a TPU."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from aqaa_jax.plan.collectives import Place, Torus
from aqaa_jax.sharding.chips import Chip, chip

# No TPU is asked for: libtpu must neither look for one, nor take its lock, nor complain of what it does not find.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
}


@dataclass(frozen=True)
class Topology:
    """``slices`` slices of ``name`` (``v5p:8x8x16``)."""

    name: str
    slices: int
    chip: Chip
    sizes: tuple[int, ...]
    devices: tuple[Any, ...]

    @property
    def chips(self) -> int:
        return len(self.devices) // self.chip.per_chip


def topology(name: str, slices: int = 1) -> Topology:
    """Describe ``slices`` slices of ``name``: generation, colon, sizes of the torus.

    Raises ``ValueError`` for a name that libtpu does not know, or without libtpu (extra ``plan``).
    """
    from jax.experimental import topologies

    found = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
    if not found:
        raise ValueError(f"topology is {name!r}; expected GENERATION:SIZES, for instance v5p:8x8x16 or v6e:16x16")
    kind, sizes = chip(found.group(1)), tuple(int(n) for n in found.group(2).split("x"))
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    more = {"num_slices": slices} if slices > 1 else {}
    more |= {"chip_config_name": kind.setting} if kind.setting else {}
    try:
        devices = topologies.get_topology_desc(name, "tpu", **more).devices
    except (RuntimeError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        line = str(error).strip().splitlines()[0]
        raise ValueError(f"topology {name!r} with {slices} slices: libtpu says {line}") from None
    return Topology(name, slices, kind, sizes, tuple(devices))


def torus(target: Topology, mesh: Mesh) -> Torus:
    """The torus with the devices in the order in which a program over ``mesh`` numbers its partitions."""
    return Torus(
        target.chip,
        target.sizes,
        tuple(
            Place(getattr(d, "slice_index", 0) or 0, tuple(d.coords[: len(target.sizes)]), d.core_on_chip)
            for d in mesh.devices.flat
        ),
    )
