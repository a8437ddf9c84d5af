"""How well the kernels of experts fill the matrix unit, by the schedule of the real TPU compiler; no TPU needed.

    JAX_PLATFORMS=cpu PYTHONPATH=. python benchmarks/grouped_schedule.py [--chip v5p]

For each kernel of ``nn/grouped_kernels.py`` at the sizes of ``configs/aqaa_moe.py``: instruction bundles of a whole
tile, and of a piece of a tile that two experts share, beside the cycles that the matrix units need at best
(``benchmarks/kernel_schedule.py`` tells how bundles are counted).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from kernel_schedule import DUMP, PRODUCTS_PER_CYCLE, TOPOLOGY, regions

from aqaa_jax.nn.grouped_kernels import FINE_ROWS, INNER, OUTER, ROWS

EMBED, MLP, EXPERTS, CHOICES = 6144, 2048, 64, 65536
PRODUCTS = {  # of one row of a tile
    "grouped_matmul.": INNER * OUTER,
    "grouped_matmul_transposed": INNER * OUTER,
    "grouped_outer": OUTER * OUTER,
}


def compile_kernels(chip: str) -> None:
    """In the child: forward and backward of one product, lowered and compiled."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from aqaa_jax.nn.grouped_matmul import grouped_matmul

    devices = topologies.get_topology_desc(TOPOLOGY[chip], platform="tpu").devices[:1]
    mesh = Mesh(np.array(devices), ("one",))

    def shape(*sizes: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    def run(x, weight, sizes, g):
        y, vjp = jax.vjp(lambda x, weight: grouped_matmul(x, weight, sizes), x, weight)
        return y, vjp(g)

    given = shape(CHOICES, EMBED), shape(EXPERTS, EMBED, MLP), shape(EXPERTS, dtype=jnp.int32), shape(CHOICES, MLP)
    with jax.set_mesh(mesh):
        jax.jit(run).lower(*given).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", choices=sorted(TOPOLOGY), default="v5p")
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile:
        return compile_kernels(args.chip)
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"LIBTPU_INIT_ARGS": DUMP.format(folder), "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        subprocess.run([sys.executable, __file__, "--chip", args.chip, "--compile"], env=env, check=True)
        for kernel, products in PRODUCTS.items():
            (path,) = Path(folder).glob(f"*{kernel}*-01-final_bundles.txt")
            whole, piece, *_ = regions(path.read_text())
            for what, bundles, rows in (("tile", whole, ROWS), ("piece", piece, FINE_ROWS)):
                best = rows * products // PRODUCTS_PER_CYCLE[args.chip]
                print(f"{args.chip} {kernel.strip('.'):26} {what:5} bundles {bundles:6} best {best:6}")


if __name__ == "__main__":
    main()
