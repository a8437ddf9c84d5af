"""How well the attention kernels fill the matrix unit, by the schedule of the real TPU compiler; no TPU needed.

    JAX_PLATFORMS=cpu python benchmarks/kernel_schedule.py --chip v5p --heads 24 --kv_heads 2 [--no_roots] [--json FILE]

Compiles forward and backward with libtpu (of the version that jax asks for), reads the final instruction bundles of
each kernel from the compiler's dump and counts those that handle one tile of all heads of a group. A bundle takes a
cycle if nothing stalls. Best: the cycles of the matrix units for the products of a tile; each has the head size as one
dimension, which fills a unit that is wider only in part. Share: best over bundles; above 1 the units, not the bundles,
set the time. "row" is what a block of queries (or keys) costs besides. --splash: the kernels that ship with JAX, which
have no bias and take the heads of a group one by one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from aqaa_jax.atomic import write_json

TOPOLOGY = {"v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "v5e": "v5e:2x2", "tpu7x": "tpu7x:2x2x1", "v4": "v4:2x2x1"}
# Matrix units of a core, and their width.
UNITS = {
    "v4": (4, 128),
    "v5e": (4, 128),
    "v5p": (4, 128),
    "v6e": (2, 256),
    "tpu7x": (2, 256),
}  # of a core, and their width
MATMULS = {"sqrt_alibi_forward": 2, "sqrt_alibi_d_queries": 3, "sqrt_alibi_d_keys_values": 4}
SPLASH = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
DUMP = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"


def compile_kernels(args: argparse.Namespace) -> None:
    """In the child: lower and compile forward and backward for one device of the chip's topology."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from aqaa_jax.kernels import flash, flash_backward
    from aqaa_jax.kernels.places import FORBIDDEN
    from aqaa_jax.kernels.tiles import TILES

    def mask(q_places, k_places, q_segments, k_segments):
        visible = (q_places >= k_places) & (q_segments == k_segments) & (k_segments != 0)
        return jnp.where(visible, 0.0, FORBIDDEN)

    if args.no_roots:
        flash.sqrt_distance = flash_backward.sqrt_distance = mask

    devices = topologies.get_topology_desc(TOPOLOGY[args.chip], platform="tpu").devices[:1]
    mesh = Mesh(np.array(devices), ("one",))
    tile = TILES[devices[0].device_kind]
    tile = tile._replace(queries=args.queries or tile.queries, keys=args.keys or tile.keys)
    Path(args.tile_file).write_text(json.dumps([tile.queries, tile.keys]))

    def shape(*sizes: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    def loss(q, k, v, slopes, *rows):
        return jnp.sum(flash.flash_attention(q, k, v, slopes, *rows, tile=tile).astype(jnp.float32) ** 2)

    if args.splash:
        loss = splash(args.heads, args.length, *tile[:2])
    q, k = (shape(1, args.length, heads, args.head_dim) for heads in (args.heads, args.kv_heads))
    rows = [shape(1, args.length, dtype=jnp.int32)] * 4
    run = loss if args.forward_only else jax.grad(loss, (0, 1, 2))
    with jax.set_mesh(mesh):
        jax.jit(run).lower(q, k, k, shape(args.heads, dtype=jnp.float32), *rows).compile()


def splash(heads: int, length: int, queries: int, keys: int):
    """A loss of (q, k, v, slopes, rows ...) that goes through the splash kernels, causal and with segments."""
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    names = [f.name for f in dataclasses.fields(splash_attention_kernel.BlockSizes) if f.name.startswith("block")]
    sizes = splash_attention_kernel.BlockSizes(**{n: queries if n.startswith("block_q") else keys for n in names})
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((length, length))] * heads)
    kernel = splash_attention_kernel.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes)

    def loss(q, k, v, slopes, q_places, k_places, q_segments, k_segments):
        q, k, v = (x[0].swapaxes(0, 1) for x in (q, k, v))
        out = kernel(q, k, v, splash_attention_kernel.SegmentIds(q_segments[0], k_segments[0]))
        return jnp.sum(out.astype(jnp.float32) ** 2)

    return loss


def regions(text: str) -> list[int]:
    """Bundles of each innermost region of a listing."""
    open_at: list[tuple[str, int]] = []
    sizes, last_opened = [], ""
    for line in text.splitlines():
        at = re.match(r"\s*(0x[0-9a-f]+|0)\s", line.strip())
        bundle = int(at.group(1), 16) if at else -1
        for word, region in re.findall(r"(Start/End empty|Start|End) region (\d+)", line):
            if word == "Start":
                open_at.append((region, bundle))
                last_opened = region
            elif word == "End":
                start = next((b for r, b in reversed(open_at) if r == region), None)
                if region == last_opened and start is not None and bundle >= 0:
                    sizes.append(bundle - start + 1)
    return sorted(sizes, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", choices=sorted(TOPOLOGY), default="v5p")
    for name, default in (
        ("heads", 24),
        ("kv_heads", 2),
        ("head_dim", 128),
        ("length", 4096),
        ("queries", 0),
        ("keys", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--forward_only", action="store_true")
    parser.add_argument("--no_roots", action="store_true", help="without the square roots, to see what they cost")
    parser.add_argument("--splash", action="store_true", help="the splash kernels of JAX in place of ours")
    parser.add_argument("--json", help="where to write the table")
    parser.add_argument("--tile_file", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tile_file:
        return compile_kernels(args)
    with tempfile.TemporaryDirectory() as folder:
        table = measure(args, Path(folder))
    for row in table:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    if args.json:
        write_json(args.json, {"arguments": vars(args), "kernels": table})


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """One row for each kernel: bundles of a tile, the best possible, their ratio, and bundles of a row of tiles."""
    tile_file = folder / "tile.json"
    env = {"LIBTPU_INIT_ARGS": DUMP.format(folder), "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    env = os.environ | env | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, __file__, *sys.argv[1:], "--tile_file", str(tile_file)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"kernel_schedule: {done.stderr.strip().splitlines()[-1]}")
    q_size, k_size = json.loads(tile_file.read_text())
    group, table = 1 if args.splash else args.heads // args.kv_heads, []
    for kernel, matmuls in (SPLASH if args.splash else MATMULS).items():
        for path in folder.glob(f"*{kernel}*-01-final_bundles.txt"):
            tile, *rest = regions(path.read_text())
            units, width = UNITS[args.chip]
            best = matmuls * group * q_size * k_size * max(args.head_dim, width) // (units * width**2)
            row = {"chip": args.chip, "kernel": kernel, "tile": f"{q_size}x{k_size}x{group}", "bundles": tile}
            table.append(row | {"best": best, "share": round(best / tile, 3), "row": sum(rest[:2])})
    return table


if __name__ == "__main__":
    main()
