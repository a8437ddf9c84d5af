"""The schedule of a compiled program played on a clock: compute, links, network and memory copies beside one another.

Operations are issued in the order of the text. Each takes the compute stream for its estimated cycles, or for its bytes
through HBM if that takes longer; a synchronous collective takes compute and links, an asynchronous one only the links
until its ``done``. What a ``done`` waits for is *exposed*.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from aqaa_jax.plan import work
from aqaa_jax.plan.collectives import Collective, Torus, collective
from aqaa_jax.plan.hlo import Computation, Module, Op, trip_count
from aqaa_jax.sharding.chips import PRODUCT_KERNELS

ICI, DCN, COPY = "ici", "dcn", "copy"
_START, _DONE = 'custom_call_target="AsyncCollectiveStart"', 'custom_call_target="AsyncCollectiveDone"'
WINDOWED = "windowed_dot_general"


@dataclass(frozen=True)
class Traffic:
    """What a step does with one collective of the program."""

    collective: Collective
    asynchronous: bool
    loops: tuple[int, ...]  # trips of the loops around it, the innermost last
    network: bool


@dataclass
class Replayed:
    """Seconds, FLOPs and bytes of one run of the program on one device."""

    seconds: float = 0.0
    # Counters of numbers that are not whole: seconds (compute, matmul, kernel, ici, exposed_ici, ...), FLOPs and bytes.
    sums: Any = field(default_factory=Counter)
    counts: Any = field(default_factory=Counter)  # Traffic -> how often
    exposed: Any = field(default_factory=Counter)  # Traffic -> seconds waited for
    notes: set[str] = field(default_factory=set)  # what makes the figures doubtful


@dataclass
class _Clock:
    now: float = 0.0
    free: dict[str, float] = field(default_factory=dict)  # stream -> when it is free
    pending: dict[str, tuple[float, str, Traffic | None]] = field(default_factory=dict)  # key -> (end, stream, what)


def replay(module: Module, torus: Torus, assumption: str = "emit") -> Replayed:
    """Play the entry computation once; ``assumption`` is one of ``collectives.ASSUMPTIONS``."""
    player = _Player(module, torus, assumption)
    player.run(module.computations[module.entry], ())
    # What nobody waited for still has to arrive.
    player.out.seconds = max([player.clock.now, *player.clock.free.values()])
    return player.out


class _Player:
    def __init__(self, module: Module, torus: Torus, assumption: str):
        self.module, self.torus, self.assumption = module, torus, assumption
        self.clock, self.out = _Clock(), Replayed()
        self.costs: dict[tuple[str, str], Any] = {}  # by computation and operation

    def run(self, computation: Computation, loops: tuple[int, ...]) -> None:
        for op in computation.ops.values():
            if op.opcode == "while":
                self._loop(computation, op, loops)
            elif op.opcode == "conditional":  # the branches do the same work or none: the longest counts
                names = op.called()
                self.run(
                    self.module.computations[max(names, key=lambda n: len(self.module.computations[n].ops))], loops
                )
            elif op.opcode == "call":
                self.run(self.module.computations[op.called()[0]], loops)
            else:
                self._issue(computation, op, loops)

    def _loop(self, computation: Computation, op: Op, loops: tuple[int, ...]) -> None:
        """Two turns played (the first fills the streams), the others counted like the second."""
        trips = trip_count(self.module, computation, op)
        body = self.module.computations[op.called("body")[0]]
        if trips is None:
            self.out.notes.add(f"loop {op.name} of unknown length counted once")
            trips = 1
        if WINDOWED in op.text:
            self.out.notes.add("windowed einsum loops: their overlap and trip counts are not to be trusted")
        for turn in range(min(trips, 2)):
            now, before = self.clock.now, _copied(self.out)
            self.run(body, (*loops, trips))
            if turn == 1:
                self._repeat(before, now, trips - 2)

    def _repeat(self, before: Replayed, then: float, times: int) -> None:
        for mine, old in zip(_counters(self.out), _counters(before), strict=True):
            for key, value in list(mine.items()):
                mine[key] = value + times * (value - old[key])
        shift = times * (self.clock.now - then)
        self.clock.now += shift
        self.clock.free = {stream: time + shift for stream, time in self.clock.free.items()}
        self.clock.pending = {k: (end + shift, s, what) for k, (end, s, what) in self.clock.pending.items()}

    def _issue(self, computation: Computation, op: Op, loops: tuple[int, ...]) -> None:
        opcode = op.opcode
        if opcode in ("fusion", "call-start") or opcode.startswith("async-"):
            inner = self._inner(op)
            if inner is not None:
                return self._fused_collective(computation, op, *inner, loops)
        found = collective(op, computation, self.torus)
        if found is not None:
            return self._transfer(found, op.name if opcode.endswith("-start") else "", loops)
        if opcode.endswith("-done"):
            return self._wait(self._started(computation, op))
        if opcode in ("copy-start", "slice-start"):
            return self._copy(computation, op)
        if opcode in ("send", "recv"):
            self.out.notes.add("host transfers (send, recv) take no time here")
            return None
        self._compute(computation, op)

    def _inner(self, op: Op) -> tuple[str, Collective] | None:
        """(role, collective) of a fusion or asynchronous call that holds one."""
        for name in op.called("to_apply" if op.opcode == "call-start" else "calls"):
            inside = self.module.computations[name]
            for inner in inside.ops.values():
                found = collective(inner, inside, self.torus)
                if found is None:
                    continue
                text = inside.root.text
                role = "start" if _START in text else "done" if _DONE in text else ""
                if op.opcode in ("async-start", "call-start"):  # the latter on a SparseCore
                    role = "async"
                elif op.opcode == "async-done":
                    return None
                elif not role:
                    role = "part" if "async_collective_fusion" in name else "sync"
                channel = inner.attribute("channel_id") or inner.name
                return f"{role} {channel} {op.name}", found
        return None

    def _fused_collective(
        self, computation: Computation, op: Op, key: str, found: Collective, loops: tuple[int, ...]
    ) -> None:
        role, channel, name = key.split(" ")
        if role == "start":
            self._transfer(found, f"channel {channel}", loops)
        elif role == "async":
            self._transfer(found, name, loops)
        elif role == "done":
            self._wait(f"channel {channel}")
        elif role == "part":  # computation beside a transfer that has begun before
            self._compute(computation, op)
        else:
            if found.kind == "all-reduce" and "dynamic-slice" in {
                o.opcode for o in self.module.computations[op.called("calls")[0]].ops.values()
            }:
                found = replace(found, kind="reduce-scatter")
            self._transfer(found, "", loops)

    def _transfer(self, found: Collective, key: str, loops: tuple[int, ...]) -> None:
        network = found.network(self.torus)
        stream = DCN if network else ICI
        seconds = found.seconds(self.torus, self.assumption)
        what = Traffic(found, bool(key), loops, network)
        lanes = [f"{stream}{lane}" for lane in ((0, 1) if found.lane is None else (found.lane,))]
        end = max([self.clock.now, *(self.clock.free.get(lane, 0.0) for lane in lanes)]) + seconds
        self.clock.free.update({lane: end for lane in lanes})
        self.out.counts[what] += 1
        self.out.sums[stream] += seconds * len(lanes) / 2
        if key:
            self.clock.pending[key] = (end, stream, what)
        else:
            self._until(end, stream, what)

    def _copy(self, computation: Computation, op: Op) -> None:
        size = work.hbm_bytes(self.module, computation, op)
        seconds = size / self.torus.chip.hbm
        self.out.sums["hbm_bytes"] += size
        self.out.sums[COPY] += seconds
        end = max(self.clock.now, self.clock.free.get(COPY, 0.0)) + seconds
        self.clock.free[COPY] = end
        self.clock.pending[op.name] = (end, COPY, None)

    def _started(self, computation: Computation, op: Op) -> str:
        """The operation whose end a ``done`` waits for."""
        name = op.operands[0] if op.operands else ""
        while name in computation.ops and name not in self.clock.pending:
            above = computation.ops[name]
            if above.opcode not in ("get-tuple-element", "bitcast", "async-update") or not above.operands:
                break
            name = above.operands[0]
        return name

    def _wait(self, key: str) -> None:
        end, stream, what = self.clock.pending.pop(key, (0.0, ICI, None))
        self._until(end, stream, what)

    def _until(self, end: float, stream: str, what: Traffic | None) -> None:
        waited = end - self.clock.now
        if waited > 0:
            self.clock.now = end
            self.out.sums[f"exposed_{stream}"] += waited
            if what is not None:
                self.out.exposed[what] += waited

    def _compute(self, computation: Computation, op: Op) -> None:
        key = (computation.name, op.name)
        if key not in self.costs:
            self.costs[key] = self._cost(computation, op)
        self.clock.now += self.costs[key]["compute"]
        self.out.sums.update(self.costs[key])

    def _cost(self, computation: Computation, op: Op) -> Any:
        chip = self.torus.chip
        product = work.matmul_flops(self.module, computation, op)
        kernel = work.kernel_flops(op)
        moved = work.hbm_bytes(self.module, computation, op)
        busy = work.cycles(op) / chip.clock + kernel / (chip.peak * chip.kernel(op.name))
        if product and not work.cycles(op):
            busy += product / chip.peak
        seconds = max(busy, moved / chip.hbm)
        if op.name.startswith(PRODUCT_KERNELS):
            product, kernel = kernel, 0
        sums: Any = Counter(hbm_bytes=moved, matmul_flops=product, kernel_flops=kernel)
        sums["compute"] = seconds
        if product:
            sums["matmul"] = seconds
        elif kernel:
            sums["kernel"] = seconds
        elif moved / chip.hbm > busy:
            sums["memory_bound"] = seconds
        if op.opcode == "custom-call" and not kernel and not product and "tpu_custom_call" in op.text:
            self.out.notes.add("a Pallas kernel declares no FLOPs: its time is missing")
        return sums


def _copied(out: Replayed) -> Replayed:
    """A copy of the counters."""
    return Replayed(out.seconds, Counter(out.sums), Counter(out.counts), Counter(out.exposed))


def _counters(out: Replayed) -> tuple[Any, Any, Any]:
    return out.sums, out.counts, out.exposed
