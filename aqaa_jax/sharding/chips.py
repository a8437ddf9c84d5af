"""Facts about TPU generations that a plan needs, in one table with their provenance.

Peaks, memory and bandwidths: Cloud TPU documentation, per chip ("System architecture" of each generation, read in
2026; v5p: 1,200 GB/s of ICI both ways over 6 links, 50 Gbit/s of DCN; v5e and v6e: network cards per host of 8 chips).
``hbm_gib`` is what the compiler allows (read from its out-of-memory messages; tpu7x is not read back but the documented
size less the same reserve). The clock is the peak divided by the multiply-adds per cycle of the MXUs. ``assumed`` names
what no document or measurement backs; every plan repeats it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aqaa_jax.sharding.xla_flags import generation


@dataclass(frozen=True)
class Chip:
    """One device as JAX counts them: a chip, or half of a tpu7x chip. Bytes and FLOPs per second."""

    name: str
    peak: float  # bf16 FLOP/s
    clock: float  # Hz
    hbm_gib: float
    hbm: float  # bytes/s
    link: float  # bytes/s, one ICI link one way
    torus: int  # dimensions of the torus
    wrap: int  # a torus dimension closes into a ring when its size is a multiple of this
    dcn: float  # bytes/s of a device's share of its host's network cards
    kernels: tuple[float, float, float, float]  # see ``KERNELS``
    per_chip: int = 1  # devices
    cycles: str = ""  # what is known against the compiler's estimated cycles
    assumed: tuple[str, ...] = ()
    setting: str = ""  # libtpu's configuration of the chip, where its default is not what JAX uses on the machine

    def kernel(self, name: str) -> float:
        """Share of the peak that the Pallas kernel called ``name`` reaches."""
        found = [share for kernel, share in zip(KERNELS, self.kernels, strict=True) if name.startswith(kernel)]
        return found[0] if found else OTHER_KERNELS


# Shares are those of rows of 4,096 tokens and 12 query heads a group, by the final instruction bundles of the compiler
# (benchmarks/kernel_schedule.py): those of tiles and of what is done once a row, and tiles half of which is masked.
# Longer rows reach more: the forward kernel of v5p 73 % at 4,096 and 89 % at 32,768. The last kernel, a product, by
# benchmarks/product_schedule.py: all pieces of a layer of the 130B, the way of a first tile from memory included.
KERNELS = ("sqrt_alibi_forward", "sqrt_alibi_d_queries", "sqrt_alibi_d_keys_values", "add_product")
PRODUCT_KERNELS = ("add_product",)  # plans count them with the compiler's own products
OTHER_KERNELS = 0.8  # assumed

_ICI = "ICI link rate: public figures, not measured here"
_DCN = "DCN rate: network cards of a host shared evenly, full rate"
_KERNEL = "attention kernels' share of the peak: taken from another generation"
_SLOW = "estimated cycles of matrix products are pessimistic"
_V5P, _V5E, _V6E = (0.73, 0.85, 0.88, 0.95), (0.74, 0.85, 0.88, 0.96), (0.49, 0.72, 0.77, 0.95)

CHIPS: dict[str, Chip] = {
    "v4": Chip(
        *("v4", 275e12, 1.05e9, 30.75, 1228e9, 45e9, 3, 4, 6.25e9, _V5P, 1, ""), (_ICI, _DCN, _KERNEL), "megacore"
    ),
    "v5e": Chip("v5e", 197e12, 1.5e9, 15.75, 819e9, 45e9, 2, 16, 3.125e9, _V5E, 1, "", (_ICI, _DCN)),
    "v5p": Chip("v5p", 459e12, 1.75e9, 95.74, 2765e9, 90e9, 3, 4, 6.25e9, _V5P, 1, "", (_ICI, _DCN)),
    "v6e": Chip(
        *("v6e", 918e12, 1.75e9, 31.25, 1638e9, 90e9, 2, 16, 12.5e9, _V6E, 1),
        f"{_SLOW} (8192^3: 2.98M against 2.26M in its bundles)",
        (_ICI, _DCN),
    ),
    "tpu7x": Chip(
        *("tpu7x", 1153.5e12, 2.2e9, 94.75, 3690e9, 100e9, 3, 4, 6.25e9, _V6E, 2),
        f"{_SLOW}; HBM bytes are over-counted",
        (_ICI, _DCN, _KERNEL, "clock: peak / MXU width", "memory limit of a device"),
    ),
}


def chip(name: str) -> Chip:
    """The generation ``name``. Raises ``ValueError`` naming the known ones."""
    if name not in CHIPS:
        raise ValueError(f"unknown TPU generation {name!r}; expected one of {', '.join(CHIPS)}")
    return CHIPS[name]


def peak_of(devices: Sequence[Any]) -> float:
    """bf16 FLOP/s of ``devices`` together; 0 when they are no TPU of the table."""
    known = [CHIPS[name].peak for d in devices if (name := generation(d.device_kind))]
    return sum(known) if len(known) == len(devices) else 0.0
