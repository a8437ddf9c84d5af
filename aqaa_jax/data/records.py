"""Conversations: the one record that every corpus becomes, and its flat form for files.

A record is a list of turns; a turn is one or more parts, each with a style of its own (an answer that changes mood is
one turn of two parts). A part holds text, sound or the stored codes of the sound, in any combination. Plain speech with
its transcript is a record of one human turn. ``rejected`` makes a preference pair: the parts of a worse last turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from aqaa_jax.dsp import wav
from aqaa_jax.tokens.prompt import ROLES

REJECTED = -1  # the turn number of the rejected parts in the flat form
NO_CODES = -1  # the number of codes of a part that has not been tokenized


class Codes(NamedTuple):
    """The two code streams of one part, int32, each within its own codebook."""

    linguistic: np.ndarray
    semantic: np.ndarray


class Pcm(NamedTuple):
    """Sound in memory: int16 ``samples`` [W], mono, at ``rate`` hertz."""

    samples: np.ndarray
    rate: int


class Part(NamedTuple):
    """What is said in one manner: text, style label ("" for none), sound (a file or samples), stored codes."""

    text: str = ""
    style: str = ""
    sound: Path | Pcm | None = None
    codes: Codes | None = None


class Turn(NamedTuple):
    """One message; ``role`` is system, human or assistant."""

    role: str
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        return " ".join(part.text for part in self.parts if part.text)


class Record(NamedTuple):
    """One conversation; with ``rejected`` parts its last turn is the chosen answer of a preference pair."""

    id: str
    turns: tuple[Turn, ...]
    rejected: tuple[Part, ...] = ()

    @property
    def parts(self) -> list[Part]:
        """All parts, the rejected ones last."""
        return [part for turn in self.turns for part in turn.parts] + list(self.rejected)

    def with_parts(self, parts: Sequence[Part]) -> Record:
        """The same conversation with other parts, given in the order of ``parts``."""
        rest = iter(parts)
        turns = tuple(Turn(turn.role, tuple(next(rest) for _ in turn.parts)) for turn in self.turns)
        return Record(self.id, turns, tuple(rest))


class Source(Protocol):
    """Records by number; ``__getitem__`` raises ``ValueError`` naming what is wrong with one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def fingerprint(self) -> str:
        """Changes when the records do."""
        ...


def check(record: Record) -> Record:
    """``record`` itself. Raises ``ValueError`` naming the value that makes it no conversation."""
    if not record.turns:
        raise ValueError("turns is empty; expected at least one turn")
    for number, turn in enumerate(record.turns):
        if turn.role not in ROLES.values():
            raise ValueError(f"turns[{number}].role is {turn.role!r}; expected one of {', '.join(ROLES)}")
        if not turn.parts:
            raise ValueError(f"turns[{number}] has no parts; expected at least one")
        for part in turn.parts:
            _check_part(part, f"turns[{number}]")
    if record.rejected and record.turns[-1].role != "assistant":
        raise ValueError(
            f"rejected answers a turn of {record.turns[-1].role!r}; expected the last turn to be assistant"
        )
    for part in record.rejected:
        _check_part(part, "rejected")
    return record


def _check_part(part: Part, where: str) -> None:
    if not part.text.strip() and part.sound is None and part.codes is None:
        raise ValueError(f"{where} has neither text nor audio nor codes")
    if isinstance(part.sound, Pcm) and not len(part.sound.samples):
        raise ValueError(f"{where} has audio of zero duration")
    if part.codes is not None and min((int(c.min()) for c in part.codes if len(c)), default=0) < 0:
        raise ValueError(f"{where} has a negative code; expected codes from 0")


def waveform(sound: Path | Pcm) -> tuple[np.ndarray, int]:
    """Float32 samples and rate. Raises ``ValueError`` naming the file that is missing, empty or not audio."""
    if isinstance(sound, Pcm):
        return sound.samples.astype(np.float32) / 32768.0, sound.rate
    return wav.read(sound)


def pcm(wav_W: np.ndarray, rate: int) -> Pcm:
    """A float waveform as stored sound. Raises ``ValueError`` for samples that are no numbers."""
    if not np.isfinite(wav_W).all():
        raise ValueError("audio contains samples that are not finite numbers (NaN or infinity)")
    return Pcm(np.clip(np.round(wav_W * 32768.0), -32768, 32767).astype(np.int16), rate)


def flat(record: Record) -> dict[str, Any]:
    """The record as columns with one entry per part, and the codes of all parts in a row."""
    numbered = [(n, turn.role, part) for n, turn in enumerate(record.turns) for part in turn.parts]
    numbered += [(REJECTED, "assistant", part) for part in record.rejected]
    parts = [part for _, _, part in numbered]
    sounds = [pcm(*waveform(p.sound)) if isinstance(p.sound, Path) else p.sound for p in parts]
    streams = {
        name: [None if p.codes is None else np.asarray(getattr(p.codes, name), np.int32) for p in parts]
        for name in Codes._fields
    }
    columns: dict[str, Any] = {
        "id": record.id,
        "turn": np.array([n for n, _, _ in numbered], np.int32),
        "role": [role for _, role, _ in numbered],
        "text": [p.text for p in parts],
        "style": [p.style for p in parts],
        "rate": np.array([s.rate if s else 0 for s in sounds], np.int32),
        "pcm": [s.samples.astype("<i2").tobytes() if s else b"" for s in sounds],
    }
    for name, codes in streams.items():
        columns[name] = np.concatenate([np.zeros(0, np.int32), *(c for c in codes if c is not None)])
        columns[f"{name}_length"] = np.array([NO_CODES if c is None else len(c) for c in codes], np.int32)
    return columns


def from_flat(columns: Mapping[str, Any]) -> Record:
    """The inverse of ``flat``; strings may be bytes. Raises ``ValueError`` for columns that make no conversation."""
    counts = [np.asarray(columns[f"{name}_length"]) for name in Codes._fields]
    bounds = [np.cumsum([0, *np.maximum(c, 0)]) for c in counts]
    turns: dict[int, list[Part]] = {}
    roles: dict[int, str] = {}
    for k, number in enumerate(np.asarray(columns["turn"]).tolist()):
        pieces = (np.asarray(columns[n])[b[k] : b[k + 1]] for n, b in zip(Codes._fields, bounds, strict=True))
        rate = int(columns["rate"][k])
        part = Part(
            text=_string(columns["text"][k]),
            style=_string(columns["style"][k]),
            sound=Pcm(np.frombuffer(columns["pcm"][k], "<i2"), rate) if rate else None,
            codes=None if counts[0][k] == NO_CODES else Codes(*pieces),
        )
        turns.setdefault(number, []).append(part)
        roles[number] = _string(columns["role"][k])
    rejected = tuple(turns.pop(REJECTED, ()))
    record = Record(_string(columns["id"]), tuple(Turn(roles[n], tuple(turns[n])) for n in sorted(turns)), rejected)
    try:
        return check(record)
    except ValueError as error:
        raise ValueError(f"record {record.id!r}: {error}") from None


def _string(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
