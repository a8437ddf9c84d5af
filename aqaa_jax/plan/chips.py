"""Facts about TPU generations that a plan needs, in one table with their provenance.

Peaks, memory and bandwidths: Cloud TPU documentation, per chip ("System architecture" of each generation, read in
2026; v5p: 1,200 GB/s of ICI both ways over 6 links, 50 Gbit/s of DCN; v5e and v6e: network cards per host of 8 chips).
``hbm_gib`` is what the compiler allows (read from its out-of-memory messages; tpu7x is not read back but the documented
size less the same reserve). The clock is the peak divided by the multiply-adds per cycle of the MXUs. ``assumed`` names
what no document or measurement backs; every plan repeats it.
"""

from __future__ import annotations

from dataclasses import dataclass


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
    kernel: float  # share of the peak that a Pallas attention kernel reaches
    per_chip: int = 1  # devices
    cycles: str = ""  # what is known against the compiler's estimated cycles
    assumed: tuple[str, ...] = ()


_ICI = "ICI link rate: public figures, not measured here"
_DCN = "DCN rate: network cards of a host shared evenly, full rate"
_KERNEL = "attention kernel's share of the peak: not measured on this chip"

CHIPS: dict[str, Chip] = {
    "v4": Chip("v4", 137.5e12, 1.05e9, 31.25, 614e9, 45e9, 3, 4, 3.125e9, 0.85, 2, "", (_ICI, _DCN, _KERNEL)),
    "v5e": Chip("v5e", 197e12, 1.5e9, 15.75, 819e9, 45e9, 2, 16, 3.125e9, 0.85, 1, "", (_ICI, _DCN, _KERNEL)),
    # The kernel's share: the compiler's VLIW bundles of one forward tile against its MXU bound (86 %).
    "v5p": Chip("v5p", 459e12, 1.75e9, 95.74, 2765e9, 90e9, 3, 4, 6.25e9, 0.86, 1, "", (_ICI, _DCN)),
    # 28 %: the same count; heads of 128 fill half of a 256-wide MXU and the vector unit bounds.
    "v6e": Chip(
        "v6e", 918e12, 1.75e9, 31.25, 1638e9, 90e9, 2, 16, 12.5e9, 0.28, 1,
        "estimated cycles of matrix products are pessimistic (8192^3: 2.98M against 2.26M in its bundles)",
        (_ICI, _DCN),
    ),
    "tpu7x": Chip(
        "tpu7x", 1153.5e12, 2.2e9, 94.75, 3690e9, 100e9, 3, 4, 6.25e9, 0.28, 2,
        "estimated cycles of matrix products are pessimistic; HBM bytes are over-counted",
        (_ICI, _DCN, _KERNEL, "clock: peak / MXU width", "memory limit of a device"),
    ),
}  # fmt: skip


def chip(name: str) -> Chip:
    """The generation ``name``. Raises ``ValueError`` naming the known ones."""
    if name not in CHIPS:
        raise ValueError(f"unknown TPU generation {name!r}; expected one of {', '.join(CHIPS)}")
    return CHIPS[name]
