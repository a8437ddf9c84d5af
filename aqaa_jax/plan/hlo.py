"""Scheduled HLO text as data: computations, operations, shapes, loop trip counts.

Read is what ``jax.stages.Compiled.as_text()`` prints for a TPU: one line per operation, in the order in which they
are issued. Nothing is interpreted here; ``work`` counts and ``replay`` takes the time.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<= ]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%[\w.\-]+)"
)
_BITS = re.compile(r"[a-z]+(\d+)")
_THROUGH = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "optimization-barrier")


class Shape(NamedTuple):
    """One array: element type, dimensions, and the memory space it lives in (0 is HBM; 1 is VMEM, 2 flags, 5 host)."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """Of the values, without the padding of tiles; 0 for tokens."""
        bits = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}.get(self.dtype)
        if bits is None:
            found = _BITS.match(self.dtype)
            bits = int(found.group(1)) if found else 0
        return math.prod(self.dims) * bits // 8


@dataclass
class Op:
    """One operation: its result arrays (a tuple's leaves in order), operands by name, and the text behind them."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    text: str  # of the operands and all attributes
    root: bool = False

    def called(self, attribute: str = "") -> list[str]:
        """Names of the computations that it calls: all of them, or those of one attribute (``body``)."""
        found = [m for m in _CALLED.finditer(self.text) if m.group(0).startswith(attribute)]
        return [name for m in found for name in _NAME.findall(m.group(1))]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The backend's configuration; empty where there is none."""
        place = self.text.find("backend_config={")
        if place < 0:
            return {}
        try:
            return json.JSONDecoder().raw_decode(self.text, place + len("backend_config="))[0]
        except json.JSONDecodeError:
            return {}

    def attribute(self, name: str) -> str:
        """The text of ``name=...`` up to the next blank or comma, or of its braces; empty where there is none."""
        found = re.search(rf"[, ]{name}=(\{{[^}}]*\}}|[^, ]+)", self.text)
        return found.group(1) if found else ""

    @property
    def source(self) -> str:
        """The path in the traced program (``op_name``), for reports."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found.group(1) if found else ""


@dataclass
class Computation:
    """Operations by name, in the order of the schedule."""

    name: str
    ops: dict[str, Op] = field(default_factory=dict)

    @cached_property
    def root(self) -> Op:
        return next(op for op in self.ops.values() if op.root)

    @cached_property
    def users(self) -> dict[str, list[Op]]:
        """Name of an operation -> the operations that read it."""
        users: dict[str, list[Op]] = {name: [] for name in self.ops}
        for op in self.ops.values():
            for operand in op.operands:
                users.setdefault(operand, []).append(op)
        return users

    def parameters(self) -> list[Op]:
        """In the order of their numbers."""
        found = [op for op in self.ops.values() if op.opcode == "parameter"]
        return sorted(found, key=lambda op: int(op.text.split(")")[0]))


@dataclass
class Module:
    """A whole program; ``entry`` names the computation that runs."""

    computations: dict[str, Computation]
    entry: str

    def ops(self) -> list[tuple[Computation, Op]]:
        return [(c, op) for c in self.computations.values() for op in c.ops.values()]


def parse(text: str) -> Module:
    """The module that ``text`` describes. Raises ``ValueError`` if there is no entry computation in it."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.startswith("  ") and current is not None:
            op = _parse_op(line.strip())
            if op is not None:
                current.ops[op.name] = op
        elif line.endswith("{") and (found := _HEADER.match(line)):
            current = computations[found.group(2)] = Computation(found.group(2))
            entry = found.group(2) if found.group(1) else entry
        elif line.startswith("}"):
            current = None
    if not entry:
        raise ValueError(f"HLO text of {len(text)} characters has no ENTRY computation")
    return Module(computations, entry)


def _parse_op(line: str) -> Op | None:
    root = line.startswith("ROOT ")
    name, equals, rest = line.removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    # The parenthesis opened behind the opcode closes behind the operands.
    operands = _NAME.findall(rest[: _closing(rest, 0, depth=1)])
    return Op(name.lstrip("%"), opcode, _shapes(kind), tuple(operands), rest, root)


def _closing(text: str, start: int, depth: int = 0) -> int:
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if depth == 0:
                return place
    return len(text)


def _shapes(text: str) -> tuple[Shape, ...]:
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(d.strip("<= ")) for d in dims.split(",") if d.strip())
        found.append(Shape(dtype, sizes, int(space.group(1)) if space else 0))
    return tuple(found)


def trip_count(module: Module, computation: Computation, loop: Op) -> int | None:
    """How often the ``while`` operation ``loop`` of ``computation`` runs its body; None if the text does not tell.

    From the compiler's own annotation, or from a condition ``counter < constant`` (``<=`` too) on an entry of the
    loop's tuple that starts at a constant and that the body adds a constant to.
    """
    known = loop.config.get("known_trip_count", {}).get("n") if loop.config else None
    if known is not None:
        return int(known)
    condition = module.computations[loop.called("condition")[0]]
    body = module.computations[loop.called("body")[0]]
    compared = _comparison(module, condition)
    if compared is None:
        return None
    index, limit, inclusive = compared
    start = _initial(computation, loop, index)
    step = _step(module, body, index)
    if start is None or step is None or step <= 0:
        return None
    return max(0, -((start - limit - inclusive) // step))


def _constant(op: Op | None) -> int | None:
    if op is None or op.opcode != "constant":
        return None
    value = op.text.split(")")[0]
    return int(value) if re.fullmatch(r"-?\d+", value) else None


def _resolved(computation: Computation, name: str) -> Op | None:
    op = computation.ops.get(name)
    while op is not None and op.opcode in _THROUGH and op.operands:
        op = computation.ops.get(op.operands[0])
    return op


def _comparison(module: Module, condition: Computation) -> tuple[int, int, int] | None:
    """(tuple index of the counter, limit, 1 if the limit is included) of a loop's condition."""
    inner, outer = condition, None
    if condition.root.opcode in ("fusion", "call") and condition.root.called():
        inner, outer = module.computations[condition.root.called()[0]], condition.root
    root = inner.root
    if root.opcode != "compare" or "direction=L" not in root.text:
        return None

    def found(name: str) -> Op | None:
        op = _resolved(inner, name)
        if outer is not None and op is not None and op.opcode == "parameter":
            return _resolved(condition, outer.operands[int(op.text.split(")")[0])])
        return op

    counter, limit = found(root.operands[0]), _constant(found(root.operands[1]))
    if counter is None or counter.opcode != "get-tuple-element" or limit is None:
        return None
    return int(counter.attribute("index")), limit, int("direction=LE" in root.text)


def _initial(computation: Computation, loop: Op, index: int) -> int | None:
    """The constant that entry ``index`` of a loop's tuple starts at."""
    made = _resolved(computation, loop.operands[0])
    if made is None or made.opcode != "tuple":
        return None
    return _constant(_resolved(computation, made.operands[index]))


def _step(module: Module, body: Computation, index: int) -> int | None:
    """The constant that the body of a loop adds to entry ``index``; the addition may be the root of a fusion."""
    if body.root.opcode != "tuple":
        return None
    inside, added, part = body, _resolved(body, body.root.operands[index]), 0
    if added is not None and added.opcode == "get-tuple-element":
        added, part = body.ops.get(added.operands[0]), int(added.attribute("index"))
    if added is not None and added.opcode == "fusion":
        inside = module.computations[added.called("calls")[0]]
        root = inside.root
        added = _resolved(inside, root.operands[part] if root.opcode == "tuple" else root.name)
    if added is None or added.opcode != "add":
        return None
    steps = [value for name in added.operands if (value := _constant(_resolved(inside, name))) is not None]
    return steps[0] if steps else None
