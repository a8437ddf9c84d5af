"""Remakes docs/plans.md: every plan below is compiled by `aqaa plan` in a process of its own.

    python benchmarks/plans.py [--only v5p_1024,v6e_256] [--again] [--list]

A plan is kept (docs/plans/NAME.json) as long as the compiler would get the same program with the same options from the
same versions, and the estimator that reads its answer is the same: lowering all of them takes two minutes, compiling
them an hour and more. Each process is timed, its peak memory measured.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from aqaa_jax.cli import config_file
from aqaa_jax.cli import plan as command
from aqaa_jax.plan.compile import lowered_step
from aqaa_jax.plan.decode import lowered_steps
from aqaa_jax.plan.topology import topology
from aqaa_jax.sharding.chips import KERNELS, OTHER_KERNELS, PRODUCT_KERNELS
from aqaa_jax.training.executable import versions

ROOT = Path(__file__).parents[1]
ESTIMATOR = [
    *("decoder/flops.py", "plan/hlo.py", "plan/work.py", "plan/collectives.py", "plan/replay.py"),
    *("plan/report.py", "plan/decode.py"),
]
OUT, PAGE = ROOT / "docs" / "plans", ROOT / "docs" / "plans.md"
DENSE = "--config=configs/aqaa_130b.py:train"
ANSWER = "--config=configs/aqaa_130b.py --decode --seq=8192"
EXPERTS = "--config=configs/aqaa_moe.py --strategy=fsdp_whole_experts --seq=4096"
TENSOR, ROWS = "--strategy=fsdp_tensor_sequence", "--strategy=fsdp_context"
PARTS = "--train=loop.by_rows=True,loop.microbatches=2"
FULL = f"{PARTS} --config.system.decoder.remat=full"
# Without the first, XLA keeps a bfloat16 copy of all weights through the micro-batches; without the second it takes
# four to six minutes of CPU time for a step on v6e and tpu7x, with it two and a half.
NO_COPY, FEW_VMEM = "--xla=xla_jf_bf16_propagation=false", "xla_tpu_scoped_vmem_limit_kib=32768"
FILLED = "xla_tpu_scheduler_percent_shared_memory_limit=97"  # else gathers are synchronous: it saves their buffers

# name -> arguments of `aqaa plan`. Steps of 4 Mi tokens unless the name of a smaller slice says otherwise.
TRAINING = {
    "v5p_4x16x16_4k": f"{DENSE} --topology=v5p:4x16x16 --mesh=data=4,fsdp=256 --batch=1024 --seq=4096",
    "v5p_8x8x16_4k": f"{DENSE} --topology=v5p:8x8x16 --mesh=data=4,fsdp=256 --batch=1024 --seq=4096",
    "v5p_4x16x16_8k": f"{DENSE} --topology=v5p:4x16x16 --mesh=data=2,fsdp=256,context=2 {ROWS} --batch=512 --seq=8192",
    "v5p_4x16x16_16k": f"{DENSE} --topology=v5p:4x16x16 --mesh=data=2,fsdp=128,context=4 {ROWS} --batch=256 "
    "--seq=16384",
    "v5p_8x8x16_8k": f"{DENSE} --topology=v5p:8x8x16 --mesh=data=2,fsdp=256,context=2 {ROWS} --batch=512 --seq=8192",
    "v5p_8x8x16_16k": f"{DENSE} --topology=v5p:8x8x16 --mesh=data=2,fsdp=128,context=4 {ROWS} --batch=256 --seq=16384",
    "v5p_8x8x8_4k": f"{DENSE} --topology=v5p:8x8x8 --mesh=data=2,fsdp=256 --batch=512 --seq=4096",
    "v5p_2x8x8x8_4k": f"{DENSE} --topology=v5p:8x8x8 --slices=2 --mesh=data=2,fsdp=256,dcn_data=2 --batch=1024",
    "v5p_4x4x4_4k": f"{DENSE} --topology=v5p:4x4x4 --mesh=fsdp=64 --batch=128 --seq=4096 {PARTS} {NO_COPY} "
    "--config.system.decoder.remat=save_attention",
    "v5p_4x4x4_4k_dpo": f"{DENSE} --stage=dpo --topology=v5p:4x4x4 --mesh=fsdp=64 --batch=128 --seq=4096 {PARTS} "
    f"{NO_COPY} --config.system.decoder.remat=save_attention",
    "v5p_2x4x4_4k": f"{DENSE} --topology=v5p:2x4x4 --mesh=fsdp=32 --batch=64 --seq=4096 {FULL} {NO_COPY},{FILLED}",
    "v5p_2x4x4_8k": f"{DENSE} --topology=v5p:2x4x4 --mesh=fsdp=8,tensor=4 {TENSOR} --batch=16 --seq=8192 {FULL} "
    f"{NO_COPY}",
    "v5p_2x4x4_16k": f"{DENSE} --topology=v5p:2x4x4 --mesh=fsdp=8,tensor=4 {TENSOR} --batch=16 --seq=16384 {FULL} "
    f"{NO_COPY}",
    "v6e_8x16_4k": f"{DENSE} --topology=v6e:8x16 --mesh=fsdp=32,tensor=4 {TENSOR} --batch=128 --seq=4096 {FULL} "
    f"{NO_COPY},{FEW_VMEM}",
    "v6e_16x16_4k": f"{DENSE} --topology=v6e:16x16 --mesh=fsdp=256 --batch=512 --seq=4096 {FULL} {NO_COPY},{FEW_VMEM}",
    "v5e_16x16_4k": f"{DENSE} --topology=v5e:16x16 --mesh=fsdp=32,tensor=8 {TENSOR} --batch=64 --seq=4096 {FULL} "
    f"{NO_COPY}",
    "tpu7x_2x2x4_4k": f"{DENSE} --topology=tpu7x:2x2x4 --mesh=fsdp=32 --batch=64 --seq=4096 {FULL} "
    f"{NO_COPY},{FEW_VMEM}",
    "tpu7x_8x8x8_4k": f"{DENSE} --topology=tpu7x:8x8x8 --mesh=data=4,fsdp=256 --batch=1024 --seq=4096 --xla={FEW_VMEM}",
    "v5p_8x8x8_4k_experts": f"{EXPERTS} --topology=v5p:8x8x8 --mesh=fsdp=64,expert=8 --batch=2048 "
    "--train=loop.by_rows=True,head_chunk=1024 --config.decoder.remat=save_experts",
    "v6e_16x16_4k_experts": f"{EXPERTS} --topology=v6e:16x16 --mesh=fsdp=64,expert=4 --batch=256 "
    f"--train=loop.by_rows=True,head_chunk=1024 --config.decoder.remat=full {NO_COPY},{FEW_VMEM}",
}
DECODING = {
    "v5p_2x2x2_1": f"{ANSWER} --topology=v5p:2x2x2 --mesh=tensor=8 --strategy=tensor --batch=1",
    "v5p_2x2x2_64": f"{ANSWER} --topology=v5p:2x2x2 --mesh=tensor=8 --strategy=tensor --batch=64",
    "v5p_2x2x1_1_int8": f"{ANSWER} --topology=v5p:2x2x1 --mesh=tensor=4 --strategy=tensor --batch=1 --weights=int8",
    "v6e_4x4_1": f"{ANSWER} --topology=v6e:4x4 --mesh=fsdp=2,tensor=8 --strategy=stationary --batch=1",
    "v6e_4x8_64": f"{ANSWER} --topology=v6e:4x8 --mesh=data=4,tensor=8 --strategy=stationary --batch=64",
}
HEAD = """# Plans of the 130 B decoder

Compiled ahead of time by `make plan` ({by}); nothing here ran on a TPU. Memory, work and collectives are facts about
the compiled programs, seconds and MFU predictions: [estimator.md](estimator.md) tells how, and how far to believe them.
AdamW with float32 state, token-masked loss, the real attention kernel. *Emit* charges a collective the torus axes that
its emitter implies, *3D* all of its group's, *1D* one ring. *Sync gather* is the largest gather of weights inside of a
layer that nothing runs beside. A star: figures that the estimator cannot vouch for, see the notes. A dagger: made from
an earlier program or by an earlier estimator; `make plan` will remake it. Compile time is wall time, of a machine
shared with other work where it is much more than half of the CPU seconds in brackets; GB is the peak memory
of the process."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names with commas")
    parser.add_argument("--again", action="store_true", help="also those that are made already")
    parser.add_argument("--list", action="store_true", help="names and arguments")
    args = parser.parse_args()
    plans = TRAINING | DECODING
    if unknown := set(filter(None, args.only.split(","))) - plans.keys():
        parser.error(f"no such plan: {', '.join(sorted(unknown))}")
    if args.list:
        print("\n".join(f"{name:20} {arguments}" for name, arguments in plans.items()))
        return 0
    os.chdir(ROOT)  # configs are named from there
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_traceback_in_locations_limit", 0)  # a kernel's text holds no paths and lines then
    chosen = args.only.split(",") if args.only else list(plans)
    paths = {name: OUT / f"{name}.json" for name in plans if name in chosen or (OUT / f"{name}.json").is_file()}
    current = {name: fingerprint(plans[name]) for name in paths}
    for name in chosen:
        if args.again or not _made(paths[name], current[name]):
            make(name, plans[name], paths[name], current[name])
    PAGE.write_text(page([name for name, path in paths.items() if not _made(path, current[name])]))
    return 0


def fingerprint(arguments: str) -> str:
    """Sixteen hex digits of all that a plan follows from: program, options, versions, and the code that reads it."""
    values, args = config_file.read("aqaa plan", arguments.split(), command._define)
    target = topology(args.topology, args.slices)
    job = command._job(values, args, target.devices)
    steps = lowered_steps(job, target, args.weights)[0].values() if args.decode else [lowered_step(job, target)[0]]
    parts = [*(step.as_text() for step in steps), json.dumps([target.name, target.slices, versions(), dict(job.flags)])]
    parts += [repr(target.chip), *map(repr, (KERNELS, PRODUCT_KERNELS, OTHER_KERNELS))]
    parts += [_without_prose((ROOT / "aqaa_jax" / name).read_text()) for name in ESTIMATOR]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _without_prose(code: str) -> str:
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def _made(path: Path, of: str) -> bool:
    made = json.loads(path.read_text()) if path.is_file() else {}
    return made.get("fingerprint") == of and "failed" not in made


def make(name: str, arguments: str, path: Path, of: str) -> None:
    """Run one plan; its JSON gets the wall time and the peak memory of the process. What fails is told and left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "aqaa_jax.cli.main", "plan", *arguments.split(), f"--json={path}"]
    print(f"{name}: aqaa plan {arguments}", file=sys.stderr, flush=True)
    began = time.monotonic()
    child = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    _, status, usage = os.wait4(child.pid, 0)
    values = json.loads(path.read_text()) if path.is_file() else {"failed": os.waitstatus_to_exitcode(status)}
    values |= {
        "arguments": arguments,
        "fingerprint": of,
        "wall_seconds": time.monotonic() - began,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss_gb": usage.ru_maxrss * 1024 / 1e9,
    }
    path.write_text(json.dumps(values, indent=1) + "\n")


def page(earlier: Sequence[str] = ()) -> str:
    """docs/plans.md, from what is in docs/plans; ``earlier`` are plans of another program or estimator."""
    made = {name: _read(name) for name in TRAINING | DECODING}
    for name, plan in made.items():
        if plan is not None:
            plan["as"] = f"{name} †" if name in earlier else name
    versions = next((p["versions"] for p in made.values() if p and "versions" in p), {})
    by = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts = ["## Training", _training(made), "## Answering", _decoding(made), "## Arguments", _arguments(made)]
    lines = [HEAD.format(by=by or "nothing yet"), *(x if isinstance(x, str) else "\n".join(x) for x in parts)]
    return "\n\n".join(lines) + "\n"


def _read(name: str) -> dict | None:
    path = OUT / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _training(made: dict[str, dict | None]) -> list[str]:
    lines = [
        "| plan | chips | memory, GiB | work / model | products at | seconds (ideal) | links exposed, s "
        "| sync gather, MiB | MFU emit [3D, 1D] | bound | compiled, s (CPU) | GB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in TRAINING:
        p = made[name]
        if p is None or "failed" in p:
            lines.append(f"| {name} | | {'not made' if p is None else 'does not fit or compile'} | | | | | | | | | |")
            continue
        mfu, exposed = p["predicted_mfu_by_axes"], p["exposed_ici_seconds_by_axes"]["emit"]
        lines.append(
            f"| {p['as']} | {p['chips']} | {p['peak_hbm_gib']:.1f} of {p['hbm_limit_gib']} "
            f"| {p['work_over_model']:.3f} | {p['matmul_efficiency']:.1%} "
            f"| {p['predicted_step_seconds']:.2f} ({p['ideal_seconds']:.2f}) | {exposed:.2f} "
            f"| {p['sync_gather_in_layer_mib']:.0f} "
            f"| {'*' if p['notes'] else ''}{mfu['emit']:.1%} [{mfu['3D']:.1%}, {mfu['1D']:.1%}] | {p['bound']} "
            f"| {p['compile_seconds']:.0f} ({p['cpu_seconds']:.0f}) | {p['peak_rss_gb']:.1f} |"
        )
    return lines


def _decoding(made: dict[str, dict | None]) -> list[str]:
    lines = [
        "| plan | chips | rows | memory, GiB | floor, ms | bytes / floor | ms a token | temporaries / cache "
        "| compiled, s (CPU) | GB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in DECODING:
        p = made[name]
        if p is None or "failed" in p:
            lines.append(f"| {name} | | | {'not made' if p is None else 'does not fit or compile'} | | | | | | |")
            continue
        seconds = p["prefill"]["compile_seconds"] + p["decode"]["compile_seconds"]
        lines.append(
            f"| {p['as']} | {p['chips']} | {p['batch']} | {p['peak_hbm_gib']:.1f} of {p['hbm_limit_gib']} "
            f"| {p['floor_seconds'] * 1e3:.2f} | {p['bytes_over_floor']:.3f} | {p['decode']['seconds'] * 1e3:.2f} "
            f"| {p['temporaries_over_cache']:.1%} | {seconds:.0f} ({p['cpu_seconds']:.0f}) | {p['peak_rss_gb']:.1f} |"
        )
    return lines


def _arguments(made: dict[str, dict | None]) -> list[str]:
    noted = [f"- {name}: {note}" for name, p in made.items() if p for note in p.get("notes", [])]
    lines = ["```", *(f"{name:20} {arguments}" for name, arguments in (TRAINING | DECODING).items()), "```"]
    return [*lines, "", "Notes (rows with a star):", "", *noted] if noted else lines


if __name__ == "__main__":
    sys.exit(main())
