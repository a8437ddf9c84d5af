"""Our manifest: one conversation per line of JSON, audio paths relative to the manifest.

::

    {"id": "a1", "turns": [{"role": "human", "text": "What is two plus two?", "audio": "wav/a1.wav"},
                           {"role": "assistant", "text": "Four.", "audio": "wav/b1.wav", "style": "happy"}]}
    {"turns": [...], "rejected": {"text": "Five."}}

A turn of several styles has ``parts`` (a list of objects with text, audio, style, linguistic, semantic) in place of
those keys. ``linguistic`` and ``semantic`` are stored codes. Every line is checked where it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aqaa_jax.data.records import Codes, Part, Record, Turn, check
from aqaa_jax.tokens.prompt import ROLES

PART_KEYS = ("text", "audio", "style", *Codes._fields)


class Manifest:
    """The records of a manifest file by number, read from disk one at a time; blank lines do not count.

    Raises ``ValueError`` if the file is missing or has no line; a bad line raises where it is asked for, with
    the line number, the value and what was expected.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{path}: no such manifest")
        lines, at = [], 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    lines.append((number, at))
                at += len(line)
        if not lines:
            raise ValueError(f"{path}: the manifest has no lines")
        self._lines = np.array(lines, np.int64)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Record:
        number, at = self._lines[index].tolist()
        with self.path.open("rb") as file:
            file.seek(at)
            line = file.readline()
        try:
            return parse(line, self.path.parent, name=f"line-{number}")
        except ValueError as error:
            raise ValueError(f"{self.path}:{number}: {error}") from None

    def fingerprint(self) -> str:
        """Of the lines; the audio files they name are not read."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def parse(line: str | bytes, folder: Path, *, name: str = "") -> Record:
    """The record of one line. Raises ``ValueError`` naming the key, its value and what was expected."""
    try:
        values = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON ({error})") from None
    _keys(values, ("id", "turns", "rejected"), "the line")
    if not isinstance(values.get("turns"), list):
        raise ValueError(f"turns is {values.get('turns')!r:.60}; expected a list of turns")
    turns = tuple(_turn(turn, folder, f"turns[{k}]") for k, turn in enumerate(values["turns"]))
    rejected = values.get("rejected", [])
    if isinstance(rejected, dict):
        rejected = [rejected]
    if not isinstance(rejected, list):
        raise ValueError(f"rejected is {rejected!r:.60}; expected a part or a list of parts")
    worse = tuple(_part(part, folder, f"rejected[{k}]") for k, part in enumerate(rejected))
    return check(Record(str(values.get("id", name)), turns, worse))


def _turn(values: Any, folder: Path, where: str) -> Turn:
    several = isinstance(values, dict) and "parts" in values
    _keys(values, ("role", "parts") if several else ("role", *PART_KEYS), where)
    role = values.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{where}.role is {role!r}; expected one of {', '.join(ROLES)}")
    parts = values["parts"] if several else [{k: v for k, v in values.items() if k != "role"}]
    if not isinstance(parts, list):
        raise ValueError(f"{where}.parts is {parts!r:.60}; expected a list")
    return Turn(
        ROLES[role], tuple(_part(p, folder, f"{where}.parts[{k}]" if several else where) for k, p in enumerate(parts))
    )


def _part(values: Any, folder: Path, where: str) -> Part:
    _keys(values, PART_KEYS, where)
    for key in ("text", "audio", "style"):
        if not isinstance(values.get(key, ""), str):
            raise ValueError(f"{where}.{key} is {values[key]!r:.60}; expected a string")
    sound = folder / values["audio"] if values.get("audio") else None
    if sound is not None and not sound.is_file():
        raise ValueError(f"{where}.audio: {sound}: no such file")
    return Part(values.get("text", ""), values.get("style", ""), sound, _codes(values, where))


def _codes(values: Mapping[str, Any], where: str) -> Codes | None:
    given = [key for key in Codes._fields if key in values]
    if not given:
        return None
    if len(given) < len(Codes._fields):
        raise ValueError(f"{where} has {given[0]} codes only; expected both of {', '.join(Codes._fields)}")
    for key in given:
        if not isinstance(values[key], list) or not all(type(code) is int for code in values[key]):
            raise ValueError(f"{where}.{key} is {values[key]!r:.60}; expected a list of integers")
    return Codes(*(np.array(values[key], np.int32) for key in Codes._fields))


def _keys(values: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {values!r:.60}; expected an object")
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}; expected some of {', '.join(known)}")
