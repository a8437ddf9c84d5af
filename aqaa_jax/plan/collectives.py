"""Collectives of a scheduled program: bytes, group, emitter, and the time they need on a torus."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from aqaa_jax.plan.hlo import Computation, Op
from aqaa_jax.sharding.chips import Chip

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
ASSUMPTIONS = ("emit", "3D", "1D")  # which torus axes a collective is charged: its emitter's, all, one ring


class Place(NamedTuple):
    """Where a device is: its slice, its coordinates in the torus, its core on the chip."""

    slice: int
    coords: tuple[int, ...]
    core: int


@dataclass(frozen=True)
class Torus:
    """The devices in the order of the program's partitions, and the size of each slice's torus."""

    chip: Chip
    sizes: tuple[int, ...]
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Collective:
    """One communicating operation. ``bytes`` is the whole array per device: gathered, reduced, or exchanged."""

    kind: str
    bytes: int
    group: tuple[int, ...]  # partitions of the first group; all groups are alike
    axes: int | None  # torus axes that the emitter uses; None where it is not named
    emitter: str
    source: str
    hops: int = 1  # of a permutation
    lane: int | None = None  # direction of a ring that a permutation uses: 0 or 1; None for both
    gathers: bool = False  # also an all-reduce of pieces put into zeros: how the compiler writes some gathers
    dims: tuple[int, ...] = ()  # of its largest array

    def seconds(self, torus: Torus, assumption: str) -> float:
        """Time on the ICI links (see ``ici_seconds``), or on the network if the group spans slices."""
        if len(self.group) <= 1:
            return 0.0
        places = [torus.places[i] for i in self.group]
        slices = len({p.slice for p in places})
        if slices == 1:
            return ici_seconds(self, places, torus, assumption)
        share = self.bytes / max(1, len(places) // slices)  # a slice's devices each carry their part over the network
        return _volume(self.kind, share, slices) / torus.chip.dcn

    def network(self, torus: Torus) -> bool:
        """Whether it crosses slices."""
        return len({torus.places[i].slice for i in self.group}) > 1


def ici_seconds(c: Collective, places: Sequence[Place], torus: Torus, assumption: str) -> float:
    """Bytes over the links of the torus axes that the group uses, without latency.

    A closed ring has two directions, a line (part of an axis, or an axis that does not wrap) one that counts: its
    last device receives everything over one link. Members ``stride`` apart share their links with ``stride`` - 1
    other groups. A group over several axes always has a ring through all its members.
    """
    lanes, strides, spans = _lanes(places, torus)
    if c.kind == "collective-permute":
        return c.bytes * c.hops / torus.chip.link
    ring = 2.0 / max(strides) if len(lanes) > 1 else lanes[0]
    if "all-to-all" in c.kind:
        # Half of everything crosses the middle of the longest axis.
        crossing = max(n * s / lane for n, s, lane in zip(spans, strides, lanes, strict=True))
        return c.bytes * crossing / (4 * torus.chip.link)
    axes = {"emit": c.axes or 1, "3D": len(lanes), "1D": 1}[assumption]
    used = sum(sorted(lanes, reverse=True)[:axes]) if axes > 1 else ring
    return _volume(c.kind, c.bytes, len(places)) / (max(used, ring) * torus.chip.link)


def _volume(kind: str, size: float, n: int) -> float:
    """Bytes that one device must receive."""
    return size * (n - 1) / n * (2 if kind == "all-reduce" else 1)


def _lanes(places: Sequence[Place], torus: Torus) -> tuple[list[float], list[int], list[int]]:
    """Links per axis that the group spans, the stride of its members there, and how many they are."""
    lanes, strides, spans = [], [], []
    for axis, size in enumerate(torus.sizes):
        at = sorted({p.coords[axis] for p in places})
        if len(at) == 1:
            continue
        stride = min(b - a for a, b in itertools.pairwise(at))
        closed = len(at) * stride == size and size % torus.chip.wrap == 0
        lanes.append((2.0 if closed else 1.0) / stride)
        strides.append(stride)
        spans.append(len(at))
    if not lanes:  # the two cores of one chip
        return [2.0], [1], [2]
    # Devices of one chip that are in different groups share its links.
    chips, cores = {p.coords for p in places}, torus.chip.per_chip
    shared = cores * len(chips) / len(places)
    return [lane / shared for lane in lanes], strides, spans


def collective(op: Op, computation: Computation, torus: Torus) -> Collective | None:
    """What ``op`` communicates; None if it is no collective."""
    kind = op.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    arrays = [s for s in op.shapes if s.dtype not in ("u32", "s32") or s.dims]
    if op.opcode.endswith("-start") and kind != "all-reduce":  # operands come first in the result
        arrays = arrays[len(arrays) // 2 :]
    size = sum(s.bytes for s in arrays)
    if kind == "reduce-scatter":
        size = sum(sum(s.bytes for s in computation.ops[name].shapes) for name in op.operands)
    emitter = op.config.get("collective_algorithm_config", {})
    hops, lane = 1, None
    if kind == "collective-permute":
        found = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", op.text)
        pairs = [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", found.group(1) if found else "")]
        pairs = [pair for pair in pairs if pair[0] != pair[1]]
        group = pairs[0] if pairs else ()
        hops, lane = _hops(pairs, torus), int(2 * sum(a < b for a, b in pairs) < len(pairs))
    else:
        group = replica_group(op.text, len(torus.places))
    largest = max(arrays, key=lambda s: s.bytes).dims if arrays else ()
    gathers = kind == "all-gather" or (kind == "all-reduce" and _pieces(op, computation))
    label = emitter.get("emitter", "")
    if emitter.get("strategy"):
        label += "/" + emitter["strategy"]
    return Collective(kind, size, group, _axes(emitter), label, op.source, hops, lane, gathers, largest)


def _pieces(op: Op, computation: Computation) -> bool:
    """Whether the first operand is an update of a slice, by its name: fusions are named after what they end in."""
    given = computation.ops.get(op.operands[0])
    if given is not None and given.opcode in ("copy-done", "bitcast") and given.operands:
        given = computation.ops.get(given.operands[0])
    return given is not None and ("dynamic-update-slice" in given.name or "broadcast" in "".join(given.operands[:1]))


def _axes(emitter: dict[str, str]) -> int | None:
    """How many torus axes the compiler's emitter says that it uses; None without an emitter."""
    named = re.match(r"(\d)DAll", emitter.get("emitter", ""))
    if named:
        return int(named.group(1))
    active = re.search(r"active_dims:([01]+)", emitter.get("debug", ""))
    if active:
        return max(1, active.group(1).count("1"))
    return 1 if emitter else None


def _hops(pairs: list[tuple[int, int]], torus: Torus) -> int:
    """The longest way of a permutation, along the axes of the torus."""
    longest = 1
    for a, b in pairs:
        one, two = torus.places[a].coords, torus.places[b].coords
        ways = [abs(x - y) for x, y in zip(one, two, strict=True)]
        closed = [min(d, n - d) if n % torus.chip.wrap == 0 else d for d, n in zip(ways, torus.sizes, strict=True)]
        longest = max(longest, sum(closed))
    return longest


def replica_group(text: str, devices: int) -> tuple[int, ...]:
    """The first group of ``replica_groups=`` in any of its three notations; everyone where there is none.

    ``{{0,1},{2,3}}``; ``[groups,members]<=[dims]T(permutation)``; ``mesh['a'=2,'b'=4] {'a','b':(1)2}``, whose
    mesh may carry ``device_ids``. Raises ``ValueError`` on another one.
    """
    place = text.find("replica_groups=")
    if place < 0:
        return tuple(range(devices))
    rest = text[place + len("replica_groups=") :]
    if rest.startswith("{"):
        found = re.match(r"\{\{([\d,]*)\}", rest)
        return tuple(int(i) for i in found.group(1).split(",")) if found else tuple(range(devices))
    if rest.startswith("["):
        found = re.match(r"\[([\d,]+)\](?:<=\[([\d,]+)\](?:T\(([\d,]+)\))?)?", rest)
        return tuple(_iota(found.group(2), found.group(3), found.group(1))[0].tolist()) if found else ()
    found = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((\S*)\))? \{([^}]*)\}", rest)
    if not found:
        raise ValueError(f"replica_groups in an unknown notation: {rest[:80]!r}")
    return _mesh_group(*found.groups())


def _ints(text: str | None) -> list[int]:
    return [int(i) for i in (text or "").split(",") if i]


def _iota(dims: str | None, permutation: str | None, shape: str) -> np.ndarray:
    sizes = _ints(dims) or _ints(shape)
    order = _ints(permutation) or list(range(len(sizes)))
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(order).reshape(_ints(shape))


def _mesh_group(mesh: str, ids: str | None, axes: str) -> tuple[int, ...]:
    names, sizes = [], []
    for name, size in re.findall(r"'?([\w.\-]+)'?=(\d+)", mesh):
        names.append(name)
        sizes.append(int(size))
    devices = np.arange(math.prod(sizes))
    if ids:
        found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", ids)
        if found:
            devices = _iota(found.group(1), found.group(2), str(len(devices)))
    devices = devices.reshape(sizes)
    # Axes that are not named stay at 0; a sub-axis 'a':(before)size splits its axis in three.
    index: list[slice | int] = []
    shape: list[int] = []
    parts = re.findall(r"'([\w.\-]+)'(?::\((\d+)\)(\d+))?", axes)
    wanted = {name: (int(before or 1), int(size or 0)) for name, before, size in parts}
    for name, size in zip(names, sizes, strict=True):
        before, inner = wanted.get(name, (1, 1))
        inner = inner or size
        shape += [before, inner, size // before // inner]
        index += [0, slice(None), 0]
    return tuple(devices.reshape(shape)[tuple(index)].reshape(-1).tolist())
