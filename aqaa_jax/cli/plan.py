"""``aqaa plan --config=FILE --topology=v5p:8x8x16``: what a step needs and takes on TPUs that are not here."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from absl import flags

from aqaa_jax.cli import config_file

HELP = """usage: aqaa plan --config=configs/aqaa_130b.py:train --topology=v5p:8x8x16 [--slices=2] [--stage=sft1]
                 [--mesh=fsdp=256,data=4] [--strategy=hsdp] [--seq=4096] [--batch=1024] [--train=FIELD=VALUE,...]
                 [--xla=NAME=VALUE,...] [--tokens=1e12] [--json=FILE] [--hlo=FILE] [--save=FILE]
                 [--config.FIELD=VALUE ...]

Compiles the step of a stage for a TPU topology, on this machine, with the compiler of the TPU, and says whether it
fits, how fast it should run and what bounds it. docs/estimator.md tells how, and how far to believe it.

  --train   fields of the stage's config: loop.microbatches=4,loop.by_rows=True,optimizer.mu_dtype=bfloat16
  --xla     compiler options on top of the trainer's table for the chip; "none" for no options at all
  --save    the executable, for loop.executable of the same stage
  --search  walks --remats, --microbatches and --meshes, and prints the plans that nothing beats in memory and MFU
  --decode  prefill and decode instead of training: --batch rows, a cache of --seq tokens, --weights=bfloat16|int8
  --check-flags   runs three steps on the devices of this machine with and without the options, and compares
A config of a system alone (configs/aqaa_130b.py) is planned in float32, its weights split over all devices.
"""
DOES_NOT_FIT = 3  # exit code


def run(argv: list[str]) -> int:
    """Parse, compile, report. Raises ``ValueError`` for a bad flag, config or topology; 3 if it does not fit."""
    if not argv or "--help" in argv or "-h" in argv:
        print(HELP)
        return 0 if argv else 2
    values, args = config_file.read("aqaa plan", argv, _define)
    if args["check-flags"].value:
        return _check_flags(values, args)
    import jax

    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")  # the compiler is asked, no device
    from aqaa_jax.plan.topology import topology

    if not args.topology:
        raise ValueError("--topology=NAME is required, for instance --topology=v5p:8x8x16")
    target = topology(args.topology, args.slices)
    if args.decode:
        return _decode(values, args, target)
    job = _job(values, args, target.devices)
    return _search(job, args, target) if args.search else _plan(job, args, target)


def _plan(job: Any, args: Any, target: Any) -> int:
    from aqaa_jax import atomic
    from aqaa_jax.plan.compile import DoesNotFit, compile_step
    from aqaa_jax.plan.report import report, table
    from aqaa_jax.plan.search import what_would_fit
    from aqaa_jax.training import executable

    try:
        with _clock(f"compiling {job.stage} for {target.slices} x {target.name}"):
            program = compile_step(job, target)
    except DoesNotFit as error:
        print(f"does not fit: {error}", file=sys.stderr)
        with _clock("looking for what would fit"):
            print(what_would_fit(job, target, error, _say))
        return DOES_NOT_FIT
    if args.hlo:
        with atomic.written(args.hlo) as part:
            part.write_text(program.compiled.as_text())
    plan = report(job, target, program, args.tokens)
    if args.save:
        devices = (target.devices[0].device_kind, len(target.devices))
        of = executable.description(job.stage, job.decoder, job.vocab, job.config, job.flags, devices)
        plan["executable"] = {"path": args.save, "key": executable.save(args.save, program.compiled, of)}
    _write(args, plan)
    print(table(plan))
    return 0


def _search(job: Any, args: Any, target: Any) -> int:
    from aqaa_jax.plan.search import front, grid, search
    from aqaa_jax.sharding.mesh import parse_mesh

    meshes = [parse_mesh(text) for text in filter(None, args.meshes.split(";"))] or [job.sharding.mesh]
    shardings = [dataclasses.replace(job.sharding, mesh=mesh) for mesh in meshes]
    jobs = grid(job, args.remats.split(","), [int(n) for n in args.microbatches.split(",")], shardings)
    with _clock(f"compiling {len(jobs)} variants for {target.slices} x {target.name}"):
        plans = search(jobs, target, args.tokens, _say)
    best = front(plans)
    _write(args, {"front": best, "plans": plans})
    for plan in best:
        print(f"{plan['peak_hbm_gib']:7.2f} GiB  MFU {plan['predicted_mfu']:6.1%}  {plan['bound']:8} {plan['variant']}")
    return 0 if best else DOES_NOT_FIT


def _decode(values: dict[str, Any], args: Any, target: Any) -> int:
    from aqaa_jax.plan.compile import DoesNotFit
    from aqaa_jax.plan.decode import decode_plan, table

    job = _job(values, args, target.devices)
    try:
        with _clock(f"compiling prefill and decode for {target.slices} x {target.name}"):
            plan = decode_plan(job, target, args.weights)
    except DoesNotFit as error:
        print(f"does not fit: {error}", file=sys.stderr)
        return DOES_NOT_FIT
    _write(args, plan)
    print(table(plan))
    return 0


def _check_flags(values: dict[str, Any], args: Any) -> int:
    """On the devices of this machine, all of the pod's: every worker runs this command."""
    import jax

    from aqaa_jax.plan.numerics import check

    job = _job(values, args, jax.devices())
    plain, flagged = check(job, job.flags, jax.devices())
    _write(args, {"flags": dict(job.flags), "without": plain, "with": flagged})
    print(f"{len(job.flags)} XLA options on {len(jax.devices())} x {jax.devices()[0].device_kind} change nothing:")
    for name in plain[0]:
        print(
            f"  {name:10} " + "  ".join(f"{a[name]:.6g} = {b[name]:.6g}" for a, b in zip(plain, flagged, strict=True))
        )
    return 0


def _job(values: dict[str, Any], args: Any, devices: Any) -> Any:
    """The job that a config and the flags describe: a stage of a recipe, or of a bare system in float32."""
    from aqaa_jax.config import SystemConfig, from_dict, to_dict
    from aqaa_jax.plan.compile import STAGES, Job, batch_parts
    from aqaa_jax.sharding.mesh import parse_mesh
    from aqaa_jax.sharding.xla_flags import options_for
    from aqaa_jax.training.config import PreferenceConfig, RecipeConfig, StageConfig

    if args.stage not in STAGES:
        raise ValueError(f"--stage is {args.stage!r}; expected one of {', '.join(STAGES)}")
    if "system" in values:
        recipe = from_dict(RecipeConfig, values)
        system, decoder, config = recipe.system, recipe.system.decoder, getattr(recipe, args.stage)
        preference = recipe.preference
    else:
        system, preference = from_dict(SystemConfig, values), PreferenceConfig()
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
    fields["loop"]["xla"] += [text for text in args.xla.split(",") if text not in ("", "none")]
    config = from_dict(StageConfig, fields, where="train.")
    if not config.batch:
        config = dataclasses.replace(config, batch=batch_parts(config.loop.sharding, devices))
    options = {} if args.xla == "none" else options_for(devices, config.loop.xla)
    return Job(decoder, system.vocab, config, args.stage, options, preference)


def _set(fields: dict[str, Any], path: str, value: str) -> None:
    *above, last = path.split(".")
    for name in above:
        fields = fields.setdefault(name, {})
    try:
        fields[last] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        fields[last] = value


def _write(args: Any, values: dict[str, Any]) -> None:
    from aqaa_jax.atomic import write_json

    if args.json:
        write_json(args.json, values)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _clock(what: str, every: float = 15.0) -> Iterator[None]:
    """Says what goes on, and every so often for how long already."""
    done, began = threading.Event(), time.monotonic()

    def tick() -> None:
        while not done.wait(every):
            _say(f"{what}: {time.monotonic() - began:.0f} s")

    _say(what)
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _define(values: flags.FlagValues) -> None:
    for name, default, help_text in (
        ("topology", "", "generation and torus, like v5p:8x8x16"),
        ("stage", "sft1", "pretrain, sft1, sft2 or dpo"),
        ("mesh", "", "sizes by name, like data=4 (default: the config's)"),
        ("strategy", "", "a sharding strategy (default: the config's)"),
        ("train", "", "fields of the stage's config, FIELD=VALUE,..."),
        ("xla", "", "compiler options on top of the table, NAME=VALUE,..., or none"),
        ("json", "", "where the plan goes"),
        ("save", "", "where the executable goes"),
        ("hlo", "", "where the scheduled HLO goes, as text"),
        ("remats", "full,save_qkvo,none", "policies to search"),
        ("microbatches", "1", "numbers of microbatches to search"),
        ("meshes", "", "meshes to search, with ; between them"),
        ("weights", "bfloat16", "of decoding: bfloat16 or int8"),
    ):
        flags.DEFINE_string(name, default, help_text, flag_values=values)
    for name, default, help_text in (
        ("slices", 1, "slices of the topology"),
        ("seq", 0, "tokens of a row (default: the config's, 4096 for a bare system)"),
        ("batch", 0, "rows of a step (default: the config's; one for each part of the batch for a bare system)"),
    ):
        flags.DEFINE_integer(name, default, help_text, flag_values=values)
    for name in ("search", "decode", "check-flags"):
        flags.DEFINE_boolean(name, False, "see --help", flag_values=values)
    flags.DEFINE_float("tokens", 0.0, "token budget, for chip-hours and days", flag_values=values)
