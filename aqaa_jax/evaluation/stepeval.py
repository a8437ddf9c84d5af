"""StepEval-Audio-360 as published: 137 conversations in nine dimensions, parquet files and a folder of recordings.

The clone holds ``data/*.parquet`` and ``audios.tar.gz`` (unpacked to ``audios/``, here if need be). A row has an id, a
category and a list of turns; a turn has a role, a text and the name of a recording. The names of these columns were
not to be had while this was written: ``COLUMNS`` lists those that are taken, and others are an error that lists what
is there.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "id": ("conversation_id", "id"),
    "category": ("category", "dimension"),
    "turns": ("conversation", "conversations", "turns", "messages"),
    "role": ("role", "from"),
    "text": ("text", "content", "value"),
    "audio": ("audio_filename", "audio_path", "audio", "filename"),
}
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}


def read_stepeval(folder: str | Path) -> CaseSet:
    """The conversations of a clone, each up to its last user turn; the group is the dimension. Questions are open.

    Raises ``FileNotFoundError`` or ``ValueError`` naming the missing file, column or recording.
    """
    folder = Path(folder)
    files = sorted((folder / "data").glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder / 'data'}: no parquet files, so {folder} is no clone of StepEval-Audio-360")
    recordings = _recordings(folder)
    rows = (row for file in files for row in _rows(file))
    cases = (_case(row, number, recordings, folder) for number, row in enumerate(rows))
    return CaseSet("StepEval-Audio-360", tuple(sorted(cases, key=lambda case: _order(case.group))))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError("StepEval-Audio-360 is in parquet files: pip install 'aqaa_jax[eval]'") from None
    yield from parquet.read_table(path).to_pylist()


def _recordings(folder: Path) -> dict[str, Path]:
    """Every recording by its name and by its path inside ``audios``."""
    audios, packed = folder / "audios", folder / "audios.tar.gz"
    if not audios.is_dir() and packed.is_file():
        with tarfile.open(packed) as archive:
            archive.extractall(audios, filter="data")
    found = [path for path in audios.rglob("*") if path.is_file()]
    names = {path.name: path for path in found}
    return names | {path.relative_to(audios).as_posix(): path for path in found}


def _case(row: Mapping[str, Any], number: int, recordings: Mapping[str, Path], folder: Path) -> Case:
    turns = [_turn(turn, recordings, folder) for turn in _column(row, "turns", folder)]
    while turns and turns[-1].role != "user":  # an answer of somebody's at the end is not the question
        turns.pop()
    name = re.sub(r"[^\w.-]+", "_", str(_column(row, "id", folder))) or f"{number:03d}"
    return Case(id=name, turns=tuple(turns), group=_dimension(str(_column(row, "category", folder))))


def _turn(turn: Mapping[str, Any], recordings: Mapping[str, Path], folder: Path) -> Turn:
    role = str(_column(turn, "role", folder)).lower()
    text, audio = str(_column(turn, "text", folder) or ""), _column(turn, "audio", folder, default="")
    if not audio:
        return Turn(ROLES.get(role, role), text)
    path = recordings.get(str(audio)) or recordings.get(Path(str(audio)).name)
    if path is None:
        raise FileNotFoundError(f"{folder / 'audios' / str(audio)}: no such recording; unpack audios.tar.gz to audios/")
    return Turn(ROLES.get(role, role), text, str(path))


def _column(row: Mapping[str, Any], what: str, folder: Path, default: Any = None) -> Any:
    for name in COLUMNS[what]:
        if name in row:
            return row[name]
    if default is not None:
        return default
    raise ValueError(f"{folder}: no column for {what} among {', '.join(row)}; expected {' or '.join(COLUMNS[what])}")


def _dimension(category: str) -> str:
    """One of ``DIMENSIONS`` whatever its spelling, or the category as it is."""
    plain = {re.sub(r"\W|_", "", name): name for name in DIMENSIONS}
    key = re.sub(r"\W|_", "", category.lower())
    return plain.get(key) or plain.get(key.removesuffix("ability")) or category


def _order(dimension: str) -> int:
    return DIMENSIONS.index(dimension) if dimension in DIMENSIONS else len(DIMENSIONS)
