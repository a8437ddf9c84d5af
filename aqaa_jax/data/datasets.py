"""Records as TensorFlow Datasets on disk, without TensorFlow: ArrayRecord shards that TFDS, and we, read at random.

``features`` is the flat form of ``records.py``. Foreign speech sets become the same records through ``Fields``, which
names their columns. Not ``features.Sequence``, whose rows come back as lists of NumPy scalars.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
import soundfile
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from aqaa_jax import atomic
from aqaa_jax.data.records import Part, Pcm, Record, Turn, check, flat, from_flat, pcm

INFO = "dataset_info.json"
SUFFIX = "array_record"
_EXAMPLE: Any = getattr(tf_example_pb2, "Example")  # noqa: B009  (made at run time: type checkers cannot see it)


@functools.cache
def features() -> tfds.features.FeaturesDict:
    """The columns of a flat record, one entry per part, codes of all parts in a row."""
    strings, integers = (tfds.features.Tensor(shape=(None,), dtype=dtype) for dtype in (np.str_, np.int32))
    columns: dict[str, Any] = {"id": tfds.features.Tensor(shape=(), dtype=np.str_)}
    columns |= dict.fromkeys(("role", "text", "style", "pcm"), strings)
    names = ("turn", "rate", "linguistic", "semantic", "linguistic_length", "semantic_length")
    return tfds.features.FeaturesDict(columns | dict.fromkeys(names, integers))


def shard_path(folder: Path, name: str, shard: int, count: int, split: str = "train") -> Path:
    return folder / f"{name}-{split}.{SUFFIX}-{shard:05d}-of-{count:05d}"


def write_shard(path: Path, records: Iterable[Record]) -> None:
    """Records to one file, in one step."""
    with atomic.written(path) as part:
        writer = ArrayRecordWriter(str(part), "group_size:1")
        try:
            for record in records:
                example = _EXAMPLE.FromString(features().serialize_example(flat(record)))
                writer.write(example.SerializeToString(deterministic=True))  # columns in one order in every process
        finally:
            writer.close()


def write_info(folder: Path, lengths: Sequence[int], sizes: Sequence[int], split: str = "train") -> None:
    """The index that makes shards a dataset, to be written last: ``features.json``, then ``dataset_info.json``."""
    template = tfds.core.ShardedFileTemplate(epath.Path(folder))
    info = tfds.core.SplitInfo(
        name=split, shard_lengths=list(lengths), num_bytes=sum(sizes), filename_template=template
    )
    tfds.folder_dataset.write_metadata(data_dir=folder, features=features(), split_infos=[info], check_data=False)


@dataclass(frozen=True)
class Fields:
    """Which columns of a foreign set are what; ``rate`` where its features do not tell.

    Columns are read as they are stored, so that no feature class (some need TensorFlow) stands in between: a nested
    column is spelled with a slash, and audio may be samples or the bytes of an audio file.
    """

    audio: str
    text: str = ""
    answer: str = ""
    answer_audio: str = ""
    id: str = ""
    rate: int = 0

    def record(self, columns: Mapping[str, Any], rates: Mapping[str, int], number: int) -> Record:
        """Speech with its transcript is one human turn, with an answer a question and its answer."""
        name = _string(columns[self.id]) if self.id else str(number)
        turns = [Turn("human", (self._part(columns, self.text, self.audio, rates),))]
        if self.answer or self.answer_audio:
            turns.append(Turn("assistant", (self._part(columns, self.answer, self.answer_audio, rates),)))
        try:
            return check(Record(name, tuple(turns)))
        except ValueError as error:
            raise ValueError(f"record {name!r}: {error}") from None

    def _part(self, columns: Mapping[str, Any], text: str, audio: str, rates: Mapping[str, int]) -> Part:
        sound = _sound(columns[audio], rates[audio], audio) if audio else None
        return Part(_string(columns[text]) if text else "", sound=sound)

    def missing(self, names: Iterable[str]) -> list[str]:
        wanted = (self.audio, self.text, self.answer, self.answer_audio, self.id)
        return sorted({name for name in wanted if name} - set(names))


# Sets by shape: what others share with these needs no code.
SHAPES: Mapping[str, Fields] = {
    "librispeech": Fields(audio="speech", text="text", id="id"),
    "spoken_qa": Fields(audio="question_audio", text="question", answer="answer", id="id"),
}


class Dataset:
    """The records of a prepared TFDS folder by number; ``fields`` if it is a foreign one.

    Raises ``FileNotFoundError`` if the folder is partial, ``ValueError`` for an unknown split, column or file format;
    an unreadable record raises ``ValueError`` where it is asked for.
    """

    def __init__(self, folder: str | Path, split: str = "train", fields: Fields | None = None):
        self.folder, self.split, self.fields = Path(folder), split, fields
        if not (self.folder / INFO).is_file():
            raise FileNotFoundError(f"{self.folder / INFO}: missing, so {folder} is not a (whole) dataset")
        info = atomic.read_json(self.folder / INFO)
        if info.get("fileFormat") != SUFFIX:
            raise ValueError(f"{folder}: prepared as {info.get('fileFormat')}; expected file_format={SUFFIX!r}")
        splits = [entry["name"] for entry in info["splits"]]
        if split not in splits:
            raise ValueError(f"{folder}: no split {split!r}; it has {', '.join(splits)}")
        self._files = sorted(self.folder.glob(f"*-{split}.{SUFFIX}-*"))
        self._data: Any = grain.sources.ArrayRecordDataSource([os.fspath(file) for file in self._files])
        columns = self._columns(0) if len(self._data) else {}
        self._rates: dict[str, int] = {}
        if fields is None:
            if columns and set(columns) != set(features()):
                raise ValueError(f"{folder}: holds {', '.join(sorted(columns))}, no records; name its columns")
            return
        if columns and (missing := fields.missing(columns)):
            raise ValueError(f"{folder}: no column {missing[0]!r}; it has {', '.join(sorted(columns))}")
        stored = atomic.read_json(self.folder / "features.json").get("featuresDict", {}).get("features", {})
        for name in filter(None, (fields.audio, fields.answer_audio)):
            self._rates[name] = fields.rate or int(stored.get(name, {}).get("audio", {}).get("sampleRate", 0))

    def __reduce__(self):
        return Dataset, (self.folder, self.split, self.fields)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        if self.fields is None:
            columns: Any = features().deserialize_example_np(self._data[index])
            return from_flat(columns)
        return self.fields.record(self._columns(index), self._rates, index)

    def _columns(self, index: int) -> dict[str, Any]:
        """The columns of a record as they are stored: an array of numbers, or a list of bytes."""
        columns = _EXAMPLE.FromString(self._data[index]).features.feature
        kinds = {name: column.WhichOneof("kind") for name, column in columns.items()}
        return {name: getattr(columns[name], kind).value if kind else [] for name, kind in kinds.items()}

    def fingerprint(self) -> str:
        """Of the index and of the names and sizes of the shards."""
        digest = hashlib.sha256((self.folder / INFO).read_bytes() + repr((self.split, self.fields)).encode())
        for path in self._files:
            digest.update(f"{path.name} {path.stat().st_size}".encode())
        return digest.hexdigest()


def _sound(values: Any, rate: int, name: str) -> Pcm:
    if len(values) and isinstance(values[0], bytes):
        try:
            wav_WC, rate = soundfile.read(io.BytesIO(values[0]), dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise ValueError(f"{name} is not readable audio ({error})") from None
        return pcm(wav_WC.mean(axis=1), rate)
    if not rate:
        raise ValueError(f"column {name!r} has no sample rate; say it with rate=")
    samples = np.asarray(values)
    whole = samples.size and np.issubdtype(samples.dtype, np.integer)
    return pcm(samples / 32768.0 if whole else samples.astype(np.float32), rate)


def _string(value: Any) -> str:
    """Text of a stored column: its only entry."""
    return value[0].decode() if isinstance(value[0], bytes) else str(value[0])
