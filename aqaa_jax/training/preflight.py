"""Checks of every host before a run: what is cheap to find now and dear to find an hour later.

Each process contributes what it knows through the coordinator; process 0 prints one line per check. The checks that
need no device come first, so that a host with broken ones is still named.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import aqaa_jax
from aqaa_jax.config import MeshConfig, ShardingConfig
from aqaa_jax.sharding import mesh as meshes
from aqaa_jax.sharding import partition, rules
from aqaa_jax.sharding.axes import BATCH
from aqaa_jax.sharding.xla_flags import VERSION, digest
from aqaa_jax.training import distributed

MISSING = "none"


@dataclass(frozen=True)
class Expected:
    """What the launcher asked for; 0 leaves a check to what all hosts agree on."""

    devices: int = 0  # in all processes together
    min_bandwidth: float = 0.0  # GB/s of the all-reduce, per device
    max_skew: float = 2.0  # seconds between the clocks of any two hosts
    megabytes: float = 64.0  # reduced by each device


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, what was found, and the hosts that are wrong (none: it passes)."""

    name: str
    found: str
    failing: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"preflight {'FAIL' if self.failing else 'ok  '} {self.name:12} {self.found}" + "".join(
            f"\npreflight FAIL {self.name:12} {host}" for host in self.failing
        )


def preflight(run_dir: str | Path, expected: Expected, say: Callable[[str], None]) -> bool:
    """Run all checks, saying each; stops after the first that fails, since those after it would hang or mislead."""
    for check in _checks(Path(run_dir), expected):
        if distributed.first():
            say(str(check))
        if check.failing:
            return False
    return True


def _checks(run_dir: Path, expected: Expected) -> Iterator[Check]:
    hosts = [f"{name} (process {i})" for i, name in enumerate(distributed.exchange("host", socket.gethostname()))]
    reports = [json.loads(text) for text in distributed.exchange("versions", json.dumps(versions()))]
    for name in reports[0]:
        yield agreement(name, [report[name] for report in reports], hosts)
    yield _clocks(hosts, expected.max_skew)
    yield _folder(run_dir, hosts)
    yield _devices(hosts, expected.devices)
    yield _bandwidth(hosts, expected)


def versions() -> dict[str, str]:
    """What must be the same on every host."""
    flags = sorted(f"{os.environ.get('XLA_FLAGS', '')} {os.environ.get('LIBTPU_INIT_ARGS', '')}".split())
    return {
        "git": os.environ.get("AQAA_SHA") or _git(),
        "code": code_hash(Path(aqaa_jax.__file__).parent),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": _version("jaxlib"),
        "libtpu": _version("libtpu"),
        "XLA flags": f"table {VERSION}, {len(flags)} of the environment, hash {digest(dict.fromkeys(flags, ''))}",
    }


def code_hash(package: Path) -> str:
    """Of the names and contents of all its modules: the code that runs, whatever a label says."""
    hashed = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        hashed.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return hashed.hexdigest()[:12]


def _git() -> str:
    root = Path(aqaa_jax.__file__).parents[1]
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or MISSING


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def agreement(name: str, values: Sequence[str], hosts: Sequence[str]) -> Check:
    """Fails the hosts whose value is not that of most; on a tie, not that of the first."""
    usual = max(values, key=lambda value: (values.count(value), value == values[0]))
    wrong = tuple(
        f"{host} has {value}, the others {usual}" for host, value in zip(hosts, values, strict=True) if value != usual
    )
    return Check(name, f"{usual} on {values.count(usual)} of {len(values)} hosts", wrong)


def _clocks(hosts: Sequence[str], limit: float) -> Check:
    """Clocks read as all leave a barrier, so a few milliseconds of what is found are the barrier's own."""
    distributed.barrier("clocks", seconds=600)
    times = np.array([float(text) for text in distributed.exchange("clocks", repr(time.time()))])
    off = times - np.median(times)
    wrong = tuple(
        f"{h} is {o:+.2f} s off; at most {limit:g} s" for h, o in zip(hosts, off, strict=True) if abs(o) > limit
    )
    return Check("clocks", f"within {np.ptp(times):.3f} s", wrong)


def _folder(run_dir: Path, hosts: Sequence[str]) -> Check:
    """Every host writes, renames a folder (as checkpoints are finished), reads, sees the first host's file, deletes."""
    mine, number, began = run_dir / f".preflight-{distributed.process()}", distributed.process(), time.monotonic()
    problem = ""
    try:
        shutil.rmtree(mine, ignore_errors=True)
        part = mine.with_name(mine.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        (part / "written").write_text(f"by process {number}")
        part.rename(mine)
        if (mine / "written").read_text() != f"by process {number}":
            problem = "reads back something else"
    except OSError as error:
        problem = str(error)
    distributed.barrier("folder written", seconds=600)
    try:
        if not problem and (run_dir / ".preflight-0" / "written").read_text() != "by process 0":
            problem = "is another folder than the first host's"
    except OSError:
        problem = "the file of the first host is not there"
    distributed.barrier("folder read", seconds=600)
    try:
        shutil.rmtree(mine)
    except OSError as error:
        problem = problem or str(error)
    said = distributed.exchange("folder", problem)
    wrong = tuple(f"{host}: {run_dir}: {text}" for host, text in zip(hosts, said, strict=True) if text)
    return Check("run dir", f"{run_dir}: written, renamed, read, deleted in {time.monotonic() - began:.2f} s", wrong)


def _devices(hosts: Sequence[str], wanted: int) -> Check:
    """As many on every host, and ``wanted`` in all. A host whose devices do not start says so here."""
    try:
        mine: Mapping[str, Any] = {"local": jax.local_device_count(), "kind": jax.devices()[0].device_kind}
    except RuntimeError as error:
        mine = {"error": " ".join(str(error).split())[:200]}
    said = [json.loads(text) for text in distributed.exchange("devices", json.dumps(mine))]
    broken = tuple(f"{host}: {report['error']}" for host, report in zip(hosts, said, strict=True) if "error" in report)
    if broken:
        return Check("devices", "do not start on every host", broken)
    same = agreement("devices", [f"{report['local']} {report['kind']}" for report in said], hosts)
    total = sum(report["local"] for report in said)
    found = f"{total}: {same.found}"
    if wanted and total != wanted and not same.failing:
        return Check("devices", found, (f"all hosts together have {total}, expected {wanted}",))
    return Check("devices", found, same.failing)


def _bandwidth(hosts: Sequence[str], expected: Expected) -> Check:
    """Time of an all-reduce over all devices; each moves 2 (n - 1) / n of its bytes in and out."""
    slices = len({getattr(device, "slice_index", 0) for device in jax.devices()})
    mesh = meshes.make_mesh(MeshConfig(data=-1, dcn_data=slices))
    table = rules.rules_of(ShardingConfig(strategy="data"))
    count, width = jax.device_count(), int(expected.megabytes * 1e6 / 4)
    spec = partition.to_spec((BATCH, None), (count, width), mesh, table, name="all-reduce")
    placed = jax.sharding.NamedSharding(mesh, spec)
    whole = jax.sharding.NamedSharding(mesh, partition.to_spec((None,), (width,), mesh, table, name="sum"))

    def row(index: Any) -> np.ndarray:
        return np.full((1, width), 1 + (index[0].start or 0), np.float32)

    rows_BW = jax.make_array_from_callback((count, width), placed, row)
    reduce = jax.jit(lambda x_BW: jnp.sum(x_BW, axis=0), out_shardings=whole)
    total_W = jax.block_until_ready(reduce(rows_BW))
    right = bool(np.all(np.asarray(total_W.addressable_data(0)) == count * (count + 1) / 2))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(reduce(rows_BW))
        times.append(time.perf_counter() - began)
    moved = 2 * (count - 1) / count * width * 4
    mine = json.dumps({"rate": moved / min(times) / 1e9, "right": right})
    said = [json.loads(text) for text in distributed.exchange("bandwidth", mine)]
    slow = [
        f"{host}: {report['rate']:.2f} GB/s, expected {expected.min_bandwidth:g}"
        for host, report in zip(hosts, said, strict=True)
        if report["rate"] < expected.min_bandwidth
    ]
    wrong = [
        f"{host}: the sum over all devices is wrong" for host, r in zip(hosts, said, strict=True) if not r["right"]
    ]
    rate = min(report["rate"] for report in said)
    found = f"{rate:.2f} GB/s per device, {expected.megabytes:g} MB over {count} devices"
    return Check("all-reduce", found, tuple(wrong + slow))
