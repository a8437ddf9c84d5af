"""``aqaa plan --config=FILE --topology=v5p:8x8x16``: what a training step needs and takes on TPUs that are not here."""

from __future__ import annotations

import ast
import dataclasses
import os
import sys
from typing import Any

from absl import flags

from aqaa_jax.cli import config_file

HELP = """usage: aqaa plan --config=configs/aqaa_130b.py --topology=v5p:8x8x16 [--slices=2] [--stage=sft]
                 [--mesh=fsdp=256,data=4] [--strategy=hsdp] [--seq=4096] [--batch=1024] [--train=FIELD=VALUE,...]
                 [--xla=table] [--tokens=1e12] [--json=FILE] [--config.decoder.remat=full ...]

Compiles the training step for a TPU topology, on this machine, with the compiler of the TPU, and says whether it fits,
how fast it should run and what bounds it. docs/estimator.md tells how, and how far to believe it.

  --train   fields of the stage's config: loop.microbatches=4,loop.by_rows=True,head_chunk=1024,optimizer.mu_dtype=bfloat16
  --xla     the compiler's options: "table" (those of the trainer, the default), "none", or NAME=VALUE,... on top of them
"""  # noqa: E501


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
        ("stage", "sft", "pretrain or sft"),
        ("mesh", "", "sizes by name, like data=4 (default: the config's; weights over all devices for a bare system)"),
        ("strategy", "", "a sharding strategy (default: the config's)"),
        ("train", "", "fields of the stage's config, FIELD=VALUE,..."),
        ("xla", "table", "the compiler's options"),
        ("json", "", "where the plan goes"),
    ):
        flags.DEFINE_string(name, default, help_text, flag_values=values)
    for name, default, help_text in (
        ("slices", 1, "slices of the topology"),
        ("seq", 0, "tokens of a row (default: the config's, 4096 for a bare system)"),
        ("batch", 0, "rows of a step (default: the config's; one for each part of the batch for a bare system)"),
    ):
        flags.DEFINE_integer(name, default, help_text, flag_values=values)
    flags.DEFINE_float("tokens", 0.0, "token budget, for chip-hours and days", flag_values=values)


def job_of(values: dict[str, Any], args: Any, target: Any) -> Any:
    """The job that a config and the flags describe: a stage of a recipe, or of a bare system in float32."""
    from aqaa_jax.config import SystemConfig, from_dict, to_dict
    from aqaa_jax.plan.compile import STAGES, Job, batch_parts
    from aqaa_jax.sharding.mesh import parse_mesh
    from aqaa_jax.training.config import RecipeConfig, StageConfig

    if args.stage not in STAGES:
        raise ValueError(f"--stage is {args.stage!r}; expected one of {', '.join(STAGES)}")
    if "system" in values:
        recipe = from_dict(RecipeConfig, values)
        system, decoder, config = recipe.system, recipe.system.decoder, getattr(recipe, args.stage)
    else:
        system = from_dict(SystemConfig, values)
        decoder, config = dataclasses.replace(system.decoder, param_dtype="float32"), StageConfig(batch=0, length=4096)
        args.mesh = args.mesh or f"fsdp=-1,dcn_data={args.slices}"
        args.strategy = args.strategy or "hsdp"
    fields = to_dict(config)
    for text in filter(None, args.train.split(",")):
        _set(fields, *text.partition("=")[::2])
    sharding = fields["loop"]["sharding"]
    if args.mesh:
        sharding["mesh"] = to_dict(parse_mesh(args.mesh))
    sharding["strategy"] = args.strategy or sharding["strategy"]
    fields["length"], fields["batch"] = args.seq or fields["length"], args.batch or fields["batch"]
    config = from_dict(StageConfig, fields, where="train.")
    if not config.batch:
        config = dataclasses.replace(config, batch=batch_parts(config.loop.sharding, target))
    return Job(decoder, system.vocab, config, args.stage, _options(args, target, decoder.remat))


def _set(fields: dict[str, Any], path: str, value: str) -> None:
    *above, last = path.split(".")
    for name in above:
        fields = fields.setdefault(name, {})
    try:
        fields[last] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        fields[last] = value


def _options(args: Any, target: Any, remat: str) -> dict[str, str]:
    from aqaa_jax.sharding.xla_flags import compiler_options

    if args.xla == "none":
        return {}
    options = compiler_options(target.chip.name, slices=args.slices, offload=remat.startswith("offload"))
    pairs = [text.partition("=") for text in args.xla.split(",") if text and text != "table"]
    return options | {name: value for name, _, value in pairs}
