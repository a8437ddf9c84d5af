"""StepEval-Audio-360 (stepfun-ai on the Hugging Face hub): parquet files of conversations, an archive of their audio.

The data card publishes neither column names nor the layout of a row, and the files could not be looked at here. So the
conversation column is found by its form (a list of objects, or JSON of one, with a text or an audio path in each), and
the names of its keys by the usual spellings; a file that does not read so is refused with its columns listed. Needs
pyarrow (extra ``parquet``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import tensorflow_datasets as tfds

from aqaa_jax.data.builders.base import RecordsBuilder
from aqaa_jax.data.records import Part, Record, Source, Turn, check
from aqaa_jax.tokens.prompt import ROLES

ROLE_KEYS = ("role", "from", "speaker")
TEXT_KEYS = ("text", "content", "value", "transcript")
AUDIO_KEYS = ("audio", "audio_path", "wav", "path", "audio_filename")
CATEGORY_KEYS = ("category", "task_type", "type", "dimension")
SPOKEN_ROLES = {**ROLES, "gpt": "assistant", "bot": "assistant"}


@dataclasses.dataclass(kw_only=True)
class StepEvalConfig(tfds.core.BuilderConfig):
    """``folder``: where the dataset was cloned (``data/*.parquet`` and ``audios.tar.gz``)."""

    folder: str = ""


class StepEval(RecordsBuilder, skip_registration=True):
    """Split ``test``: the conversations with the recordings of their human turns; the style label is the category."""

    def sources(self) -> dict[str, Source]:
        return {"test": StepEvalSource(cast(StepEvalConfig, self.builder_config).folder)}


class StepEvalSource:
    """The rows of all parquet files below ``folder``; the archive is unpacked beside it at the first use.

    Raises ``ValueError`` naming what is missing or the columns that hold no conversation.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.files = sorted(self.folder.rglob("*.parquet"))
        if not self.files:
            raise ValueError(f"{folder}: no parquet files; expected a clone of StepEval-Audio-360")
        self.audio = _unpacked(self.folder)
        self.rows = [row for file in self.files for row in _rows(file)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        row = self.rows[index]
        turns = next((found for value in row.values() if (found := _turns(value))), None)
        if turns is None:
            raise ValueError(f"{self.folder}: no conversation among the columns {', '.join(row)}")
        category = str(_first(row, CATEGORY_KEYS) or "")
        spoken = tuple(self._turn(turn, category, number) for number, turn in enumerate(turns))
        return check(Record(str(_first(row, ("id", "conversation_id")) or f"stepeval-{index:03d}"), spoken))

    def _turn(self, turn: Mapping[str, Any], category: str, number: int) -> Turn:
        role = str(_first(turn, ROLE_KEYS) or ("human", "assistant")[number % 2])
        if role not in SPOKEN_ROLES:
            raise ValueError(f"turn {number} has role {role!r}; expected one of {', '.join(SPOKEN_ROLES)}")
        text, audio = _first(turn, TEXT_KEYS), _first(turn, AUDIO_KEYS)
        path = audio.get("path") if isinstance(audio, Mapping) else audio
        sound = self.audio.get(Path(str(path)).name) if path else None
        if path and sound is None:
            raise ValueError(f"turn {number} names {path}, which is not in the archive")
        return Turn(SPOKEN_ROLES[role], (Part(str(text or ""), category, sound),))

    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(file.read_bytes() for file in self.files)).hexdigest()


def step_eval(folder: str, data_dir: str) -> StepEval:
    """The builder for a clone of the dataset."""
    config = StepEvalConfig(name="audio_360", folder=str(folder))
    return StepEval(config=config, data_dir=data_dir, file_format="array_record")


def _unpacked(folder: Path) -> dict[str, Path]:
    """Audio files by name."""
    target = folder / "audios"
    for archive in sorted(folder.glob("*.tar.gz")):
        if not (target / f".{archive.name}.done").exists():
            with tarfile.open(archive) as tar:
                tar.extractall(target, filter="data")  # nothing outside of ``target``
            (target / f".{archive.name}.done").touch()
    return {path.name: path for path in target.rglob("*") if path.suffix.lower() in (".wav", ".mp3", ".flac", ".ogg")}


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError("pyarrow is missing: pip install 'aqaa_jax[parquet]'") from None
    return pyarrow.parquet.read_table(file).to_pylist()


def _turns(value: Any) -> list[Mapping[str, Any]] | None:
    """``value`` if it has the form of a conversation."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return None
    if not isinstance(value, list) or not value or not all(isinstance(turn, Mapping) for turn in value):
        return None
    return value if all(_first(turn, (*TEXT_KEYS, *AUDIO_KEYS)) for turn in value) else None


def _first(values: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((values[key] for key in keys if values.get(key)), None)
