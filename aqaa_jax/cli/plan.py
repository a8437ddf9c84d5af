"""``aqaa plan --config=FILE --topology=v5p:8x8x16``: what a training step needs and takes on TPUs that are not here."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

from absl import flags

from aqaa_jax.cli import config_file

HELP = """usage: aqaa plan --config=configs/aqaa_130b.py --topology=v5p:8x8x16 [--slices=2] [--stage=sft]
                 [--mesh=fsdp=256,data=4] [--strategy=hsdp] [--seq=4096] [--batch=1024] [--json=FILE] [--tokens=1e12]
                 [--config.decoder.layers=8 ...]

Compiles the training step for a TPU topology, on this machine, with the compiler of the TPU, and says whether it fits,
how fast it should run and what bounds it. docs/estimator.md tells how, and how far to believe it.
"""


def run(argv: list[str]) -> int:
    """Parse, compile, report. Raises ``ValueError`` for a bad flag, config or topology; 3 if it does not fit."""
    if not argv or "--help" in argv or "-h" in argv:
        print(HELP)
        return 0 if argv else 2
    values, args = config_file.read("aqaa plan", argv, _define)
    import jax

    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")  # the compiler is asked, no device
    from aqaa_jax.atomic import write_json
    from aqaa_jax.plan import report
    from aqaa_jax.plan.compile import DoesNotFit, compile_step
    from aqaa_jax.plan.topology import topology

    if not args.topology:
        raise ValueError("--topology=NAME is required, for instance --topology=v5p:8x8x16")
    target = topology(args.topology, args.slices)
    job = job_of(values, args, target)
    print(f"compiling {job.stage} for {args.slices} x {args.topology} ...", file=sys.stderr, flush=True)
    try:
        program = compile_step(job, target)
    except DoesNotFit as error:
        print(f"does not fit: {error}", file=sys.stderr)
        return 3
    plan = report.report(job, target, program, args.tokens)
    if args.json:
        write_json(args.json, plan)
    print(report.table(plan))
    return 0


def _define(values: flags.FlagValues) -> None:
    for name, default, help_text in (
        ("topology", "", "generation and torus, like v5p:8x8x16"),
        ("stage", "sft", "pretrain, sft or dpo"),
        ("mesh", "", "sizes by name, like fsdp=256,data=4 (default: that of the config, else fsdp over everything)"),
        ("strategy", "", "a sharding strategy (default: that of the config, else fsdp)"),
        ("json", "", "where the plan goes"),
        ("xla", "", "compiler options as name=value,name=value"),
    ):
        flags.DEFINE_string(name, default, help_text, flag_values=values)
    for name, default, help_text in (
        ("slices", 1, "slices of the topology"),
        ("seq", 4096, "tokens of a row"),
        ("batch", 0, "rows of a step (default: one for each part of the batch)"),
    ):
        flags.DEFINE_integer(name, default, help_text, flag_values=values)
    flags.DEFINE_float("tokens", 0.0, "token budget, for chip-hours and days", flag_values=values)


def job_of(values: dict[str, Any], args: Any, target: Any) -> Any:
    """The job that a config and the flags describe."""
    from aqaa_jax.config import MeshConfig, ShardingConfig, SystemConfig, from_dict
    from aqaa_jax.plan.compile import Job
    from aqaa_jax.sharding.mesh import make_mesh, parse_mesh
    from aqaa_jax.training.config import OptimizerConfig

    system = from_dict(SystemConfig, values)
    mesh = parse_mesh(args.mesh) if args.mesh else MeshConfig(fsdp=-1, dcn_data=args.slices)
    sharding = ShardingConfig(mesh, args.strategy or "fsdp")
    sizes = make_mesh(mesh, target.devices).shape
    batch = args.batch or sizes["data"] * sizes["fsdp"] * sizes["expert"]
    decoder = dataclasses.replace(system.decoder, param_dtype="float32")
    options = dict(pair.split("=") for pair in args.xla.split(",") if pair)
    return Job(decoder, system.vocab, sharding, OptimizerConfig(), args.stage, batch, args.seq, options)
