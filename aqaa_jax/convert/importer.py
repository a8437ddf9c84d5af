"""Published file sets into a model folder, one part after the other, never a whole part in memory.

Everything that can be told from headers is checked first; then each part is streamed, and its record
(``<part>.import.json``: configuration, account, hashes) is written when it is whole. ``config.json``, which makes the
folder a model, comes last, when all five parts and the text tokenizer are there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aqaa_jax import atomic
from aqaa_jax.atomic import read_json
from aqaa_jax.checkpoint import folder, header, shards
from aqaa_jax.checkpoint.tree import layer_name, named_weights
from aqaa_jax.config import MeshConfig, SystemConfig, to_dict
from aqaa_jax.convert import layout, speaker
from aqaa_jax.convert.account import Account
from aqaa_jax.convert.composing import compose
from aqaa_jax.convert.filesets import S3_ONNX, FileSet, detect
from aqaa_jax.convert.progress import Progress
from aqaa_jax.convert.record import RECORD, read_record, read_records, verify_part, write_record
from aqaa_jax.sharding.mesh import abstract_mesh, describe
from aqaa_jax.sharding.partition import shardings
from aqaa_jax.sharding.rules import strategy
from aqaa_jax.version import __version__

SHARD_BYTES = 5 * 10**9
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """How to import. ``dtype``: of the written float weights, empty for the published one."""

    dtype: str = ""
    parts: tuple[str, ...] = ()
    dry_run: bool = False
    verify: bool = False
    keep_unexpected: bool = False
    shard_bytes: int = SHARD_BYTES
    mesh: MeshConfig | None = None  # also tell what a device of such a mesh would hold
    strategy: str = "fsdp_tensor"


class Job(NamedTuple):
    """One part, checked: what is there, what will be written."""

    one: FileSet
    account: Account
    plan: Mapping[str, jax.ShapeDtypeStruct]  # our names, in the order they are written

    @property
    def size(self) -> int:
        """Bytes that will be written."""
        return _bytes(self.plan) + _bytes(self.account.aside)


def import_folder(
    source: str | Path,
    target: str | Path,
    base: SystemConfig,
    options: Options,
    *,
    given: bool = False,
    say: Say = print,
    report: Say = print,
) -> list[Account]:
    """Import the published file sets of the folder ``source`` into the model folder ``target``.

    ``base`` gives what published files do not say (answer pattern, prompt, sampling); if ``given`` by the user its
    sizes must be those of the files. A part that is there from the same source is kept, an interrupted one goes on.
    Returns the accounts. Raises ``ValueError``, ``FileNotFoundError`` or ``OSError`` naming file and tensor before
    anything is written, where headers can tell.
    """
    source, target = Path(source), Path(target)
    system, jobs = _check(source, target, base, options, given, report)
    accounts = [job.account for job in jobs]
    with_flow = any(job.one.part == "flow" for job in jobs)  # which is what reads speaker vectors
    voices = speaker.find(source, target) if with_flow else None
    if with_flow:
        report(voices.text() if voices else f"{source}: no {folder.SPEAKER_MODEL}; voices will have no speaker vector")
    if options.dry_run:
        for job in jobs:
            report(_forecast(job))
        return accounts
    todo = [job for job in jobs if not _is_done(target, job, options)]
    copying = voices is not None and not speaker.is_done(voices, target)
    extra = voices.size if voices and copying else 0
    shards.check_space(target, sum(job.size for job in todo) + extra - _written(target, todo))
    if todo:
        (target / folder.CONFIG).unlink(missing_ok=True)
    for job in todo:
        (target / f"{job.one.part}{RECORD}").unlink(missing_ok=True)
        _write_part(target, job, options, say)
    if voices and copying:
        speaker.copy(voices, target)
    text_model = source / folder.TEXT_MODEL
    if text_model.is_file():
        with atomic.written(target / folder.TEXT_MODEL) as part:
            part.write_bytes(text_model.read_bytes())
    if options.verify:
        for part in [*(job.one.part for job in jobs), *([speaker.NAME] if voices else [])]:
            verify_part(target, part)
            say(f"{part}: read again, every file has the hash that was written")
    _finish(target, system, say)
    return accounts


def _check(
    source: Path, target: Path, base: SystemConfig, options: Options, given: bool, report: Say
) -> tuple[SystemConfig, list[Job]]:
    """Everything that can be told before writing: the system that will be there, and a job per part."""
    if options.dtype:
        header.check_float(options.dtype)
    _check_target(source, target)
    sets = detect(source, base, given=given, parts=options.parts, dtype=options.dtype)
    accounts = [Account.of(one, casting=bool(options.dtype), keep_unexpected=options.keep_unexpected) for one in sets]
    for account in accounts:
        report(account.text())
    if "flow" in {one.part for one in sets} and (source / S3_ONNX).is_file() and "semantic" not in options.parts:
        report(f"{S3_ONNX}: left out; that of Step-Audio-Tokenizer is used (or name it: --parts semantic)")
    for account in accounts:
        account.check()
    present = {part: record["config"] for part, record in read_records(target).items()}
    system = compose(base, present | {one.part: to_dict(one.config) for one in sets})
    for one in sets:
        one.check()
        if options.mesh:
            report(_per_device(one, options.mesh, options.strategy))
    plans = [_plan(one, options.dtype) for one in sets]
    return system, [Job(*job) for job in zip(sets, accounts, plans, strict=True)]


def _check_target(source: Path, target: Path) -> None:
    """Raise ``ValueError`` if something in ``target`` would be lost that no import has put there."""
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"{target}: is the source; expected another folder to write to")
    config = target / folder.CONFIG
    if config.is_file() and "imported" not in read_json(config).get("provenance", {}):
        raise ValueError(f"{config}: not written by an import; expected a new folder, or one of an earlier import")
    for part in folder.PARTS:
        weights = [target / f"{part}{shards.SUFFIX}", target / f"{part}{shards.INDEX}"]
        for path in filter(Path.is_file, weights):
            if not (target / f"{part}{shards.hashes.SUFFIX}").is_file():
                raise ValueError(f"{path}: not written by an import; expected a folder without it")


def _plan(one: FileSet, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Our names with shapes and the dtype they will have on disk, in the order they are written."""
    ours = named_weights(one.model)
    if one.part == "decoder":  # in shards, a stack is stored layer by layer
        for name in [n for n in ours if n.startswith("blocks.")]:
            stack = ours.pop(name)
            layer = jax.ShapeDtypeStruct(stack.shape[1:], stack.dtype)
            ours |= {layer_name(name, i): layer for i in range(stack.shape[0])}
    plan = {}
    for entry in one.entries:
        published = one.convertible.shapes.get(entry.names[0])
        stored = jnp.dtype(dtype) if dtype else published.dtype if published else ours[entry.ours].dtype
        plan[entry.ours] = jax.ShapeDtypeStruct(ours[entry.ours].shape, stored)
    return plan


def _bytes(tensors: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    return sum(map(header.nbytes, tensors.values()))


def _forecast(job: Job) -> str:
    largest = max(map(header.nbytes, job.one.published.shapes.values()))
    aside = f" and {_bytes(job.account.aside) / 1e9:.3f} GB aside" if job.account.aside else ""
    return (
        f"{job.one.part}: would write {_bytes(job.plan) / 1e9:.3f} GB{aside}, "
        f"with at most {(3 * largest + 1e9) / 1e9:.2f} GB of memory (largest tensor {largest / 1e9:.3f} GB)"
    )


def _per_device(one: FileSet, mesh: MeshConfig, rules: str) -> str:
    """Raises ``ValueError`` naming a weight that does not split evenly over the mesh."""
    places = named_weights(shardings(one.model, abstract_mesh(mesh), strategy(rules)))
    slices = {
        name: jax.ShapeDtypeStruct(places[name].shard_shape(w.shape), w.dtype)
        for name, w in named_weights(one.model).items()
    }
    return f"{one.part}: {_bytes(slices) / 1e9:.3f} GB on each device of a {describe(mesh)} ({rules})"


def _written(target: Path, jobs: list[Job]) -> int:
    """Bytes of these parts that are on the disk already: kept if an interrupted run wrote them, replaced if not."""
    return sum(p.stat().st_size for job in jobs for p in target.glob(f"{job.one.part}[-.]*{shards.SUFFIX}"))


def _is_done(target: Path, job: Job, options: Options) -> bool:
    record = read_record(target, job.one.part)
    if record is None or record["source"] != _source(job.one, options):
        return False
    return all((target / f).is_file() and (target / f).stat().st_size == n for f, n in record["files"].items())


def _source(one: FileSet, options: Options) -> str:
    return f"{one.fingerprint} {options.dtype} {options.shard_bytes if one.part == 'decoder' else ''}".strip()


def _write_part(target: Path, job: Job, options: Options, say: Say) -> None:
    one, plan, aside = job.one, job.plan, job.account.aside
    entries = {entry.ours: entry for entry in one.entries}
    source = _source(one, options)
    common: dict[str, Any] = {"source": source, "progress": Progress(one.part, job.size, say)}

    def read(name: str) -> Any:
        return layout.blocks(entries[name], one.convertible.read, plan[name].dtype)

    if one.part == "decoder":
        hashes = shards.write_shards(target, plan, read, prefix=one.part, max_bytes=options.shard_bytes, **common)
    else:
        hashes = shards.write_one(target, plan, read, prefix=one.part, **common)
    if aside:
        whole = lambda name: [np.ascontiguousarray(one.published.read(name))]  # noqa: E731
        hashes |= shards.write_shards(
            target, aside, whole, prefix=f"{one.part}.aside", max_bytes=options.shard_bytes, **common
        )
    values = {"from": job.account.origin, "source": source, "config": to_dict(one.config)}
    write_record(target, one.part, values, hashes, job.account.to_json())


def _finish(target: Path, system: SystemConfig, say: Say) -> None:
    """Write ``config.json`` if the folder is whole; say what is missing otherwise."""
    records = read_records(target)
    absent = [part for part in folder.PARTS if part not in records]
    absent += [] if (target / folder.TEXT_MODEL).is_file() else [folder.TEXT_MODEL]
    if absent:
        say(f"{target}: still to import: {', '.join(absent)}; {folder.CONFIG} is written when they are there")
        return
    voices = read_record(target, speaker.NAME)
    records |= {speaker.NAME: voices} if voices else {}
    provenance = {p: {"from": r["from"], "sha256": r["sha256"]} for p, r in records.items()}
    folder.write_config(target, system, provenance={"version": __version__, "imported": provenance})
    say(f"{target}: whole, `aqaa ask --model {target}` answers with it")
