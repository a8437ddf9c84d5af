"""MaxText's own train step, compiled for the slices of our plans and read by the same estimator.

    make maxtext
    python benchmarks/maxtext.py --maxtext-python .venv-maxtext/bin/python [--only NAME,...] [--list] [--reread]
    python benchmarks/maxtext.py --maxtext-python ... --only 130b_v5p_8x8x16 --topology v5p:8x8x8 --mesh fsdp=512

maxtext_step.py compiles in an environment of its own (maxtext.txt, maxtext-bare.txt), with the compiler of our plans.
Its program is read here as those are, by ``aqaa_jax.plan.report``; docs/peers/NAME.json has what a plan of ours has.

Attention: MaxText has no square-root ALiBi. Its default, the splash kernels of JAX with causal mask and segments,
stands in. They declare no FLOPs; each is charged what ours declare, half of the square times its products (2 forward, 3
for the queries' gradient, 4 for the keys' and values'), at the share of the peak that ours reach.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from aqaa_jax.atomic import write_json
from aqaa_jax.config import DecoderConfig, ShardingConfig, VocabConfig
from aqaa_jax.plan.compile import Job, Program
from aqaa_jax.plan.report import report, table
from aqaa_jax.plan.topology import Topology, topology
from aqaa_jax.sharding.chips import KERNELS
from aqaa_jax.sharding.mesh import parse_mesh
from aqaa_jax.training.config import LoopConfig, StageConfig

ROOT = Path(__file__).parents[1]
OUT, PROGRAMS, PLANS = ROOT / "docs" / "peers", ROOT / "out" / "maxtext", ROOT / "docs" / "plans"
# MaxText's preset for 128 B on v5p without what concerns replicas; the last: gathers stay gathers (xla_flags.py).
FUSION = (
    *("xla_tpu_enable_async_collective_fusion=true", "xla_tpu_enable_async_collective_fusion_fuse_all_gather=true"),
    *("xla_tpu_enable_async_collective_fusion_multiple_steps=true", "xla_tpu_overlap_compute_collective_tc=true"),
    *("xla_enable_async_all_gather=true", "xla_tpu_prefer_async_allgather_to_allreduce=true"),
)
# The preset of MaxText's llama2_70b.sh.
V5P_70B = (
    *FUSION[:5],
    *("xla_tpu_megacore_fusion_allow_ags=false", "xla_enable_async_collective_permute=true"),
    *("xla_tpu_enable_ag_backward_pipelining=true", "xla_tpu_enable_data_parallel_all_reduce_opt=true"),
    "xla_tpu_data_parallel_opt_different_sized_ops=true",
)
# Flags and options of the preset llama2-70b-4096 for v6e in MaxText's repository.
V6E_70B = (*FUSION[:5], "xla_tpu_scoped_vmem_limit_kib=98304")
OURS_130B = DecoderConfig()
V6E_70B_OPTIONS = (
    *("use_iota_embed=true", "ici_fsdp_parallelism=1"),
    *("sa_block_q=1024", "sa_block_q_dkv=2048", "sa_block_q_dq=2048"),
)
LLAMA_70B = DecoderConfig(vocab=32000, embed=8192, mlp=28672, heads=64, kv_heads=8, layers=80)


@dataclasses.dataclass(frozen=True)
class Row:
    """One step of MaxText's."""

    topology: str
    mesh: str  # sizes of axes that MaxText and we call alike
    model: DecoderConfig = OURS_130B
    rows: int = 1  # of a device
    length: int = 4096
    remat: str = "minimal_with_context"  # MaxText's name: every product and the output of attention is kept
    flags: tuple[str, ...] = FUSION
    options: tuple[str, ...] = ("use_iota_embed=true",)  # as in all of MaxText's scripts for v5p
    fsdp: str = "fsdp"  # the axis of MaxText's that is fsdp here
    ours: str = ""  # our plan of the same model, slice and batch
    published: float = 0.0  # MaxText's own MFU, on chips


ROWS = {
    "130b_v5p_8x8x16": Row("v5p:8x8x16", "data=4,fsdp=256", ours="v5p_8x8x16_4k"),
    "130b_v5p_4x16x16": Row("v5p:4x16x16", "data=4,fsdp=256", ours="v5p_4x16x16_4k"),
    "llama2_70b_v5p_8x8x8": Row(
        *("v5p:8x8x8", "fsdp=512", LLAMA_70B, 2, 4096, "save_dot_except_mlpwi", V5P_70B), published=0.654
    ),
    "llama2_70b_v5p_8x8x8_async": Row(  # libtpu of today makes all-reduces of the gathers otherwise
        *("v5p:8x8x8", "fsdp=512", LLAMA_70B, 2, 4096, "save_dot_except_mlpwi", V5P_70B + FUSION[5:]), published=0.654
    ),
    "llama2_70b_v6e_16x16": Row(
        *("v6e:16x16", "fsdp=256", LLAMA_70B, 4, 4096, "full", V6E_70B, V6E_70B_OPTIONS, "fsdp_transpose"),
        published=0.438,
    ),
}
# Splash kernel -> our kernel of the same products, and how many they are.
CHARGED = {"fwd": (KERNELS[0], 2), "dq": (KERNELS[1], 3), "dkv": (KERNELS[2], 4)}
_SPLASH = re.compile(r"%splash_\w+?_(fwd|dq|dkv)_")
_BF16 = re.compile(r"bf16\[([\d,]+)\]")
_CONFIG = '"custom_call_config":{'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own = "130b_v5p_8x8x16,130b_v5p_4x16x16"
    parser.add_argument("--maxtext-python", help="Python of the environment with MaxText")
    parser.add_argument("--only", default=own, help="names with commas (default %(default)s), or: all")
    parser.add_argument("--list", action="store_true", help="names and MaxText's options")
    parser.add_argument("--reread", action="store_true", help="read programs that were compiled before, in out/maxtext")
    for name, what in (("topology", "v5p:8x8x8"), ("mesh", "data=2,fsdp=256"), ("remat", "full")):
        parser.add_argument(f"--{name}", help=f"in place of the row's, for instance {what}")
    for name, what in (("rows", "of a device"), ("length", "tokens of a row")):
        parser.add_argument(f"--{name}", type=int, help=f"{what}, in place of the row's")
    args = parser.parse_args()
    chosen = list(ROWS) if args.only == "all" else args.only.split(",")
    if unknown := set(chosen) - ROWS.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if not (args.maxtext_python or args.list or args.reread):
        parser.error("--maxtext-python is required")
    jax.config.update("jax_platforms", "cpu")
    changes = {k: v for k in ("topology", "mesh", "remat", "rows", "length") if (v := getattr(args, k))}
    for name in chosen:
        row = dataclasses.replace(ROWS[name], **changes | ({"ours": "", "published": 0.0} if changes else {}))
        target = topology(row.topology)
        if args.list:
            print(f"{name:22} {' '.join(options(row, len(target.devices)))}")
            continue
        folder = PROGRAMS / "-".join([name, *(re.sub(r"\W", "_", str(v)) for v in changes.values())])
        if not args.reread:
            compile_row(row, target, folder, args.maxtext_python)
        made = figures(row, target, folder)
        write_json((folder if changes else OUT) / f"{name}.json", made)
        print(f"{name}\n{table(made)}\n{versus(made)}\n", flush=True)
    return 0


def options(row: Row, devices: int) -> list[str]:
    """``row`` in MaxText's words."""
    m = row.model
    sizes = {
        "base_emb_dim": m.embed, "base_mlp_dim": m.mlp, "base_num_query_heads": m.heads,
        "base_num_kv_heads": m.kv_heads, "head_dim": m.head_dim, "base_num_decoder_layers": m.layers,
        "vocab_size": m.vocab, "normalization_layer_epsilon": m.norm_eps, "per_device_batch_size": row.rows,
        "max_target_length": row.length, "compile_topology": row.topology, "compile_topology_num_slices": 1,
        "internal_compile_num_devices": devices, "remat_policy": row.remat,
    }  # fmt: skip
    axes = {"data": "data", "fsdp": row.fsdp}
    sizes |= {f"ici_{axes[axis]}_parallelism": size for axis, size in (part.split("=") for part in row.mesh.split(","))}
    fixed = ("decoder_block=llama2", "allow_split_physical_axes=true", *row.options)
    flags = " ".join(f"--{flag}" for flag in row.flags)
    return [*(f"{name}={value}" for name, value in sizes.items()), *fixed, f"compile_xla_flags={flags}"]


def compile_row(row: Row, target: Topology, folder: Path, python: str) -> None:
    """Have MaxText compile ``row``; what it leaves is in ``folder``, what it says in ``folder/log``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "facts.json").unlink(missing_ok=True)
    script = Path(__file__).with_name("maxtext_step.py")
    command = [os.path.abspath(python), "-P", str(script), str(folder), *options(row, len(target.devices))]
    with (folder / "log").open("w") as log:
        done = subprocess.run(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        last = (folder / "log").read_text().strip().splitlines()[-1]
        raise SystemExit(f"maxtext: {folder.name} failed: {last} (more in {folder / 'log'})")


def figures(row: Row, target: Topology, folder: Path) -> dict[str, Any]:
    """What a plan of ours has, of the program in ``folder``; and how it compares."""
    facts = json.loads((folder / "facts.json").read_text())
    text = charged((folder / "program.txt").read_text())
    memory = SimpleNamespace(
        peak_memory_in_bytes=facts["peak_bytes"], argument_size_in_bytes=facts["argument_bytes"],
        temp_size_in_bytes=facts["temporary_bytes"], host_argument_size_in_bytes=0, host_temp_size_in_bytes=0,
    )  # fmt: skip
    compiled = SimpleNamespace(as_text=lambda: text, memory_analysis=lambda: memory)
    at = {(getattr(d, "slice_index", 0) or 0, tuple(d.coords), d.core_on_chip): d for d in target.devices}
    devices = np.array([at[index, tuple(coords), core] for index, coords, core in facts["places"]])
    program = Program(compiled, Mesh(devices, ("device",)), 0.0, facts["compile_seconds"])
    loop = LoopConfig(sharding=ShardingConfig(mesh=parse_mesh(row.mesh), strategy="MaxText's"))
    config = StageConfig(loop=loop, batch=row.rows * len(target.devices), length=row.length)
    flags = dict(flag.split("=") for flag in row.flags)
    made = report(Job(row.model, VocabConfig(), config, flags=flags), target, program)
    for name in ("stage", "strategy", "lower_seconds", "versions"):  # of ours
        made.pop(name, None)
    mfu = made["predicted_mfu"]
    without = made["model_flops"] / (target.chip.peak * len(target.devices))
    made |= {
        "stage": "MaxText", "strategy": row.remat, "versions": facts["versions"],
        "options": options(row, len(target.devices)),
        "mfu_without_kernels": without / (made["predicted_step_seconds"] - made["streams"]["kernel"]),
        "cpu_seconds": facts["cpu_seconds"], "peak_rss_gb": facts["peak_rss_gb"],
    }  # fmt: skip
    if row.published:
        made |= {"published_mfu": row.published, "predicted_over_published": mfu / row.published}
    if row.ours and (PLANS / f"{row.ours}.json").is_file():
        plan = json.loads((PLANS / f"{row.ours}.json").read_text())
        assert plan["topology"] == made["topology"] and plan["model_flops"] == made["model_flops"]
        by = plan["predicted_mfu_by_axes"]
        ratios = {name: by[name] / other for name, other in made["predicted_mfu_by_axes"].items()}
        made |= {"ours": row.ours, "ours_mfu": plan["predicted_mfu"], "ours_over_this_by_axes": ratios}
    return made


def charged(text: str) -> str:
    """The program ``text`` with splash kernels under our kernels' names, and with the FLOPs that those declare.

    Their attributes hold line breaks, which are taken out.
    """
    text = re.sub(r'\n(?="xprof_metadata|\}\}, )', "", text)
    lines = []
    for line in text.splitlines():
        found = _SPLASH.search(line)
        if found and "custom-call(" in line and found.start() < line.index(" = "):
            products = CHARGED[found.group(1)][1]
            layouts = line[line.index("operand_layout_constraints=") :]
            queries, keys = ([int(n) for n in dims.split(",")] for dims in _BF16.findall(layouts)[:2])
            pairs = math.prod(queries[:-1]) * keys[-2] // 2
            flops = f'"cost_estimate":{{"flops":"{2 * products * pairs * queries[-1]}"}},'
            if line.count(_CONFIG) != 1:
                raise ValueError(f"a splash kernel without a configuration: {line[:200]}")
            line = line.replace(_CONFIG, _CONFIG + flops)
        lines.append(_SPLASH.sub(lambda m: f"%{CHARGED[m.group(1)][0]}_", line))
    return "\n".join(lines) + "\n"


def versus(made: dict[str, Any]) -> str:
    """How a row compares with ours, or with what was published."""
    said = [f"without its kernels' time {made['mfu_without_kernels']:.1%}"]
    if "ours" in made:
        by = made["ours_over_this_by_axes"]
        times = f"{by['emit']:.3f} [{by['3D']:.3f}, {by['1D']:.3f}] times this"
        said.append(f"ours ({made['ours']}) {made['ours_mfu']:.1%}: {times}")
    if "published_mfu" in made:
        said.append(f"published {made['published_mfu']:.1%}, predicted is {made['predicted_over_published']:.3f} of it")
    return "; ".join(said)


if __name__ == "__main__":
    sys.exit(main())
