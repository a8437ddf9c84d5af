"""How large the blocks of the Pallas kernels are, by chip."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from aqaa_jax.sharding.partition import device

LANES = 128  # the last axis of a vector register; blocks of positions are multiples of it


class Tiles(NamedTuple):
    """Sizes of the blocks of queries and keys, MiB of vector memory for a kernel, and whether it is interpreted."""

    queries: int
    keys: int
    vmem_mib: int
    interpret: bool = False

    def compiler_params(self, *semantics: Literal["parallel", "arbitrary"]) -> pltpu.CompilerParams:
        """``semantics``: whether the steps of each axis of the grid may run in any order, on two cores."""
        return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=self.vmem_mib * 2**20)

    def cost(self, products: int, q_BKGLH: jax.Array, k_BKSH: jax.Array) -> pl.CostEstimate:
        """Of a causal kernel with ``products`` matrix products a tile, for the compiler's schedule and for plans.

        Half of all tiles are visible if queries and keys are the same rows; packing hides more, which only the data
        knows. Queries pass once, keys and values once for each visible block of queries.
        """
        B, K, G, L, H = q_BKGLH.shape
        S, size = k_BKSH.shape[2], q_BKGLH.dtype.itemsize
        pairs = B * K * G * L * S // 2
        passes = max(1, L // self.queries // 2)
        return pl.CostEstimate(
            flops=2 * products * pairs * H,
            transcendentals=pairs,
            bytes_accessed=size * B * K * H * (products * G * L + 2 * passes * S),
        )

    def within(self, L: int, S: int) -> Tiles:
        """No larger than ``L`` queries and ``S`` keys need."""
        return self._replace(
            queries=min(self.queries, -(-L // LANES) * LANES), keys=min(self.keys, -(-S // LANES) * LANES)
        )


# device_kind -> tiles. Chips have 64 (v5p, 7x) or 128 MiB (v5e, v6e) of vector memory for a core, v4 16. On v5p the
# kernels leave room for what collectives hold meanwhile: with 56 the compiler refuses all-reduces inside products.
TILES = {
    "TPU v4": Tiles(256, 256, 16),
    "TPU v5 lite": Tiles(512, 512, 96),
    "TPU v5": Tiles(512, 512, 24),
    "TPU v6 lite": Tiles(512, 512, 96),
    "TPU7x": Tiles(512, 512, 56),
}
INTERPRETED = Tiles(128, 128, 16, interpret=True)


def tiles() -> Tiles:
    """The tiles of the device that is traced for; elsewhere than on a TPU kernels are interpreted (for tests).

    Raises ``ValueError`` for a TPU that is not in the table and for a GPU, where interpreting would crawl.
    """
    at = device()
    if at.platform == "cpu":
        return INTERPRETED
    if at.device_kind not in TILES:
        raise ValueError(f"attention 'flash' on {at.device_kind!r}; expected one of {', '.join(TILES)}")
    return TILES[at.device_kind]
