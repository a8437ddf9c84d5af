"""StepEval-Audio-360 (stepfun-ai on the Hugging Face hub) as records: parquet files of conversations, and recordings.

A clone holds ``data/*.parquet`` and ``audios.tar.gz``. A row has an id, a category and a list of turns (or JSON of
one); a turn has a role, a text and the name of a recording. The data card names no columns and the files could not be
looked at while this was written, so ``COLUMNS`` lists the names that are taken. Nothing is guessed: a column that has
none of its names, a role that is none and a recording that is missing are errors that say what there is. Needs pyarrow
(extra ``parquet``).
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aqaa_jax.data.records import Part, Record, Turn, check
from aqaa_jax.tokens.prompt import ROLES

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "id": ("conversation_id", "id"),
    "category": ("category", "dimension", "task_type"),
    "turns": ("conversation", "conversations", "turns", "messages"),
    "role": ("role", "from", "speaker"),
    "text": ("text", "content", "value", "transcript"),
    "audio": ("audio_filename", "audio_path", "audio", "filename", "path"),
}
SPOKEN_ROLES = {**ROLES, "gpt": "assistant"}


class StepEvalSource:
    """The rows of all parquet files of the clone ``folder``; archives are unpacked beside them at the first use.

    The category is the style label of every part. A turn of the assistant that is empty, the place of an answer, is
    left out. Raises ``FileNotFoundError`` naming the folder without parquet files; a record, ``ValueError`` or
    ``FileNotFoundError`` naming the column, role or recording that is missing.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.files = sorted((self.folder / "data").glob("*.parquet"))
        if not self.files:
            raise FileNotFoundError(f"{folder}/data: no parquet files, so {folder} is no clone of StepEval-Audio-360")
        self.recordings = _recordings(self.folder)
        self.rows = [row for file in self.files for row in _rows(file)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        row = self.rows[index]
        category, turns = str(self._column(row, "category")), self._column(row, "turns")
        turns = json.loads(turns) if isinstance(turns, str) else turns
        found = (self._turn(turn, category) for turn in turns)
        spoken = tuple(t for t in found if t.role != "assistant" or t.parts[0].text or t.parts[0].sound)
        return check(Record(str(self._column(row, "id")), spoken))

    def fingerprint(self) -> str:
        """Of the conversations, not of the recordings."""
        return hashlib.sha256(b"".join(file.read_bytes() for file in self.files)).hexdigest()

    def _turn(self, turn: Mapping[str, Any], category: str) -> Turn:
        role = str(self._column(turn, "role")).lower()
        if role not in SPOKEN_ROLES:
            raise ValueError(f"{self.folder}: a turn has role {role!r}; expected one of {', '.join(SPOKEN_ROLES)}")
        audio = self._column(turn, "audio", optional=True)
        name = str(audio.get("path") if isinstance(audio, Mapping) else audio or "")
        sound = self.recordings.get(name) or self.recordings.get(Path(name).name)
        if name and sound is None:
            raise FileNotFoundError(
                f"{self.folder / 'audios' / name}: no such recording; unpack audios.tar.gz to audios/"
            )
        return Turn(SPOKEN_ROLES[role], (Part(str(self._column(turn, "text") or ""), category, sound),))

    def _column(self, row: Mapping[str, Any], what: str, *, optional: bool = False) -> Any:
        name = next((name for name in COLUMNS[what] if name in row), None)
        if name is None and not optional:
            expected = " or ".join(COLUMNS[what])
            raise ValueError(f"{self.folder}: no column for {what} among {', '.join(row)}; expected {expected}")
        return row[name] if name else None


def _recordings(folder: Path) -> dict[str, Path]:
    """Every recording by its name and by its path inside ``audios``."""
    target = folder / "audios"
    for archive in sorted(folder.glob("*.tar.gz")):
        done = target / f".{archive.name}.done"
        if not done.exists():
            with tarfile.open(archive) as tar:
                tar.extractall(target, filter="data")  # nothing outside of ``target``
            done.touch()
    found = [path for path in target.rglob("*") if path.is_file()]
    return {path.name: path for path in found} | {path.relative_to(target).as_posix(): path for path in found}


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{file}: reading it needs pyarrow: pip install 'aqaa_jax[parquet]'") from None
    return pyarrow.parquet.read_table(file).to_pylist()
