"""StepEval-Audio-360 as a set of cases: 137 conversations in nine dimensions (``data.stepeval`` reads the clone)."""

from __future__ import annotations

import re
from pathlib import Path

from aqaa_jax.data.records import Record
from aqaa_jax.data.stepeval import StepEvalSource
from aqaa_jax.evaluation.cases import Case, CaseSet, Turn

DIMENSIONS = (
    "singing",
    "creativity",
    "role-playing",
    "logical reasoning",
    "voice understanding",
    "voice instruction following",
    "gaming",
    "speech emotion control",
    "language ability",
)
_ROLES = {"human": "user"}


def read_stepeval(folder: str | Path) -> CaseSet:
    """The conversations of a clone, each up to its last user turn; the group is the dimension. Questions are open.

    Raises ``FileNotFoundError`` or ``ValueError`` naming the missing file, column or recording.
    """
    source = StepEvalSource(folder)
    cases = [_case(source[number]) for number in range(len(source))]
    return CaseSet("StepEval-Audio-360", tuple(sorted(cases, key=lambda case: _order(case.group))))


def _case(record: Record) -> Case:
    spoken = [(turn.role, turn.parts[0]) for turn in record.turns]
    turns = [Turn(_ROLES.get(role, role), part.text, str(part.sound or "")) for role, part in spoken]
    while turns and turns[-1].role != "user":  # an answer of somebody's at the end is not the question
        turns.pop()
    name = re.sub(r"[^\w.-]+", "_", record.id)
    return Case(id=name, turns=tuple(turns), group=_dimension(record.turns[0].parts[0].style))


def _dimension(category: str) -> str:
    """One of ``DIMENSIONS`` whatever its spelling, or the category as it is."""
    plain = {re.sub(r"\W|_", "", name): name for name in DIMENSIONS}
    key = re.sub(r"\W|_", "", category.lower())
    return plain.get(key) or plain.get(key.removesuffix("ability")) or category


def _order(dimension: str) -> int:
    return DIMENSIONS.index(dimension) if dimension in DIMENSIONS else len(DIMENSIONS)
