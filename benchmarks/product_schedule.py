"""How well the kernels of matrix products fill the matrix unit, by the real TPU compiler's schedule; no TPU needed.

    JAX_PLATFORMS=cpu PYTHONPATH=. python benchmarks/product_schedule.py [--chip v5p]

Experts: for each kernel of ``nn/grouped_kernels.py`` at the sizes of ``configs/aqaa_moe.py`` the instruction bundles of
a whole tile, and of a piece of a tile that two experts share, beside the cycles that the matrix units need at best
(``benchmarks/kernel_schedule.py`` tells how bundles are counted). Rings: for ``kernels/accumulate.py`` the bundles of
the whole kernel, which is one tile and what it takes to fetch the next, beside the same; and the share of the peak for
the weights of the 130B's layers in rings of 16, the first tile's way from memory included.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kernel_schedule import DUMP, TOPOLOGY, UNITS, regions

from aqaa_jax.kernels.accumulate import COLUMNS as RING_COLUMNS
from aqaa_jax.kernels.accumulate import ROWS as RING_ROWS
from aqaa_jax.kernels.accumulate import Piece, add_product, halves
from aqaa_jax.nn.grouped_kernels import FINE_ROWS, INNER, OUTER, ROWS
from aqaa_jax.sharding.chips import chip as facts

EMBED, MLP, EXPERTS, CHOICES = 6144, 2048, 64, 65536
PRODUCTS = {  # of one row of a tile
    "grouped_matmul.": INNER * OUTER,
    "grouped_matmul_transposed": INNER * OUTER,
    "grouped_outer": OUTER * OUTER,
}
TOKENS, WIDTH, PIECE, COLUMNS = 4096, 12288, 768, (31232, 31232, 31232, 12288, 12288)  # of a layer that rings take
OVERHEAD = 130  # bundles of a tile beside its product, read from the listing
CORES = {"v4": 2, "v5p": 2}


def compile_kernels(chip: str) -> None:
    """In the child: forward and backward of an experts' product and a step of a ring, lowered and compiled."""
    import jax
    import jax.numpy as jnp

    from aqaa_jax.config import MeshConfig
    from aqaa_jax.nn.grouped_matmul import grouped_matmul
    from aqaa_jax.plan.topology import topology
    from aqaa_jax.sharding.mesh import make_mesh
    from aqaa_jax.sharding.partition import partitioning
    from aqaa_jax.sharding.rules import strategy

    mesh = make_mesh(MeshConfig(), topology(TOPOLOGY[chip]).devices[:1])

    def shape(*sizes: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def experts(x, weight, sizes, g):
        y, vjp = jax.vjp(lambda x, weight: grouped_matmul(x, weight, sizes), x, weight)
        return y, vjp(g)

    (column, wide), _ = halves(COLUMNS[0])

    def ring(total, x, g, row):
        return add_product(x, g, Piece(row, PIECE, column, wide), total)

    one = shape(dtype=jnp.int32)
    rows = shape(CHOICES, EMBED), shape(EXPERTS, EMBED, MLP), shape(EXPERTS, dtype=jnp.int32), shape(CHOICES, MLP)
    pieces = shape(PIECE, wide), shape(TOKENS, WIDTH), shape(TOKENS, COLUMNS[0]), one
    with partitioning(mesh, strategy("replicated")), jax.set_mesh(mesh):
        for run, given in ((experts, rows), (ring, pieces)):
            jax.jit(run).trace(*given).lower(lowering_platforms=("tpu",)).compile()


def ring_share(chip: str, bundles: int) -> float:
    """Share of the peak over all halves of pieces of a layer; a tile takes its cycles on the units and its overhead."""
    (units, width), at, cores = UNITS[chip], facts(chip), CORES.get(chip, 1)
    best = RING_ROWS * RING_COLUMNS * TOKENS // (units * width**2)
    fetched = 2 * TOKENS * (RING_ROWS + RING_COLUMNS) * cores / at.hbm * at.clock  # cycles before work
    ideal = taken = 0.0
    for columns in COLUMNS:
        for _, wide in halves(columns):
            tiles = PIECE // RING_ROWS // cores * -(-wide // RING_COLUMNS)
            ideal += PIECE * wide * TOKENS / (units * width**2 * cores)
            taken += tiles * max(best + OVERHEAD, bundles) + fetched
    return ideal / taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", choices=sorted(TOPOLOGY), default="v5p")
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile:
        return compile_kernels(args.chip)
    units, width = UNITS[args.chip]
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"LIBTPU_INIT_ARGS": DUMP.format(folder), "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        subprocess.run([sys.executable, __file__, "--chip", args.chip, "--compile"], env=env, check=True)

        def listing(kernel: str) -> str:
            (path,) = Path(folder).glob(f"*{kernel}*-01-final_bundles.txt")
            return path.read_text()

        for kernel, products in PRODUCTS.items():
            whole, piece, *_ = regions(listing(kernel))
            for what, bundles, rows in (("tile", whole, ROWS), ("piece", piece, FINE_ROWS)):
                show(args.chip, kernel.strip("."), what, bundles, rows * products // (units * width**2))
        bundles = max(int(at, 16) for at in re.findall(r"^\s*(0x[0-9a-f]+)\s", listing("add_product"), re.MULTILINE))
        show(args.chip, "add_product", "tile", bundles, RING_ROWS * RING_COLUMNS * TOKENS // (units * width**2))
        print(f"{args.chip} add_product                rings of 16: {ring_share(args.chip, bundles):.3f} of the peak")


def show(*row: Any) -> None:
    print("{} {:26} {:5} bundles {:6} best {:6}".format(*row))


if __name__ == "__main__":
    main()
