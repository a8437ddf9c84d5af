"""What a model is asked: cases, sets of them, and a set as one JSONL file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

SPOKEN_TASKS = ("aqtaa", "transcript_first", "tqtaa")  # a woven answer
WRITTEN_TASKS = ("asr", "aqta", "tqta")
CODEC_TASKS = ("resynthesis", "shuffled_tokens", "shuffled_groups")  # the audio's own tokens, spoken again
TASKS = (*SPOKEN_TASKS, *WRITTEN_TASKS, *CODEC_TASKS)
CHANGES = ("slow", "fast", "high", "low")
_ID = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Turn:
    """One message: what is said and a recording of it; either may be missing, not both."""

    role: str = "user"  # or assistant
    text: str = ""
    audio: str = ""  # path of a recording


@dataclass(frozen=True)
class Case:
    """A conversation that ends with the user. Without ``answer`` the question is open.

    An assistant turn with content is history as it stands; user turns that follow one another are answered by the
    model one after the other, and its own answers are the history of the next. ``compared_to`` names the case that
    asks the same plainly, ``change`` how the answer's voice should differ from its answer.
    """

    id: str
    turns: tuple[Turn, ...]
    answer: str = ""
    answer_audio: str = ""  # a recording of the right answer
    group: str = "all"  # split or dimension
    task: str = "aqtaa"
    speak: bool = True  # whether the answer is turned into sound
    domain: str = ""  # of the set's ``sentences``: what an answer can be; empty: anything
    tags: Mapping[str, str] = field(default_factory=dict)
    compared_to: str = ""
    change: str = ""

    @property
    def spoken(self) -> bool:
        """Whether the answer is to be heard."""
        return self.speak and self.task not in WRITTEN_TASKS

    @property
    def written(self) -> bool:
        """Whether the answer has a text of its own."""
        return self.task not in CODEC_TASKS

    @property
    def question(self) -> str:
        """The conversation as text: what a judge reads."""
        said = [f"{turn.role}: {turn.text or '(a recording)'}" for turn in self.turns]
        return said[0].split(": ", 1)[1] if len(said) == 1 else "\n".join(said)


@dataclass(frozen=True)
class CaseSet:
    """Named cases; ``sentences``: for every closed domain, all that an answer can be."""

    name: str
    cases: tuple[Case, ...]
    sentences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known: set[str] = set()
        for case in self.cases:
            _check(case, known)
            known.add(case.id)
        for case in self.cases:
            if case.domain and case.domain not in self.sentences:
                raise ValueError(f"case {case.id!r} is of domain {case.domain!r}, whose sentences the set lacks")
            if case.compared_to and case.compared_to not in known:
                raise ValueError(f"case {case.id!r} is compared to {case.compared_to!r}, which is none of the set")


def _check(case: Case, known: set[str]) -> None:
    if not _ID.fullmatch(case.id) or case.id in known:
        raise ValueError(f"case id {case.id!r}; expected letters, digits, dots, dashes, and no id twice")
    if case.task not in TASKS:
        raise ValueError(f"case {case.id!r} has task {case.task!r}; expected one of {', '.join(TASKS)}")
    if not case.turns or case.turns[-1].role != "user":
        raise ValueError(f"case {case.id!r} does not end with a user's turn")
    for turn in case.turns:
        if turn.role not in ("user", "assistant", "system") or not (turn.text or turn.audio):
            raise ValueError(f"case {case.id!r}: a turn of {turn.role!r} without text and audio, or of nobody known")
    if case.change and case.change not in CHANGES:
        raise ValueError(f"case {case.id!r} has change {case.change!r}; expected one of {', '.join(CHANGES)}")


def to_json(case_set: CaseSet) -> dict[str, Any]:
    """The set as plain values; the inverse of ``from_json``."""
    return asdict(case_set)


def from_json(values: Mapping[str, Any]) -> CaseSet:
    cases = tuple(case_of(case, where=values["name"]) for case in values["cases"])
    return CaseSet(values["name"], cases, {k: tuple(v) for k, v in values.get("sentences", {}).items()})


def case_of(values: Mapping[str, Any], *, where: str) -> Case:
    """A case from a JSON object; raises ``ValueError`` naming an unknown or missing key."""
    known = {f.name for f in fields(Case)}
    unknown = set(values) - known
    if unknown or not {"id", "turns"} <= set(values):
        raise ValueError(
            f"{where}: a case with {', '.join(sorted(values))}; expected id, turns, some of {sorted(known)}"
        )
    turns = tuple(Turn(**turn) for turn in values["turns"])
    return Case(**{**values, "turns": turns})


def read_jsonl(path: str | Path) -> CaseSet:
    """A set of one's own: a line per case, with the fields of ``Case``, or ``audio``/``text`` for a single question.

    Recordings are relative to the file. Raises ``ValueError`` naming file and line.
    """
    path = Path(path)
    return CaseSet(path.stem, tuple(_lines(path)))


def _lines(path: Path) -> Iterator[Case]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = dict(json.loads(line))
            single = {key: values.pop(key) for key in ("audio", "text") if key in values}
            turns: Sequence[Any] = [single] if single else values.get("turns", ())
            values["turns"] = [_placed(turn, "audio", path) for turn in turns]
            values.setdefault("id", f"{number:05d}")
            yield case_of(_placed(values, "answer_audio", path), where=where)
        except (TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{where}: not a case ({error})") from None


def _placed(values: Mapping[str, Any], key: str, beside: Path) -> dict[str, Any]:
    """``values`` with the path under ``key`` taken from the folder of ``beside``; it has to be a file."""
    if not values.get(key):
        return dict(values)
    recording = beside.parent / str(values[key])
    if not recording.is_file():
        raise FileNotFoundError(f"{recording}: no such recording, named in {beside}")
    return {**values, key: str(recording)}
