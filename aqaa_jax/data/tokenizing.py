"""Sound to stored codes, shard by shard: the work of ``aqaa tokenize``, on one machine or as a Beam pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aqaa_jax.data import datasets, sharded
from aqaa_jax.data.records import Codes, Part, Record, Source, waveform
from aqaa_jax.data.sharded import Problem, Summary
from aqaa_jax.dsp.wav import resample

RATE = 16000
NAME = "codes"
# 16 kHz waveforms -> (linguistic, semantic) codes of each, in order.
Ears = Callable[[Sequence[np.ndarray]], Sequence[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class TokenizeJob:
    """Codes of every part of ``source`` that has sound and none yet, to a TFDS dataset of records in ``folder``.

    ``ears`` loads the tokenizers, once per process: picklable, equal and hashed by what it loads. A record with a part
    that cannot be read, has no duration or is too short for one group of codes is skipped and listed; ``strict`` makes
    it fatal. ``tail`` seconds of silence are put behind every part.
    """

    folder: Path
    source: Source
    ears: Callable[[], Ears]
    model: str
    strict: bool = False
    tail: float = 0.0
    per_shard: int = 256
    batch_seconds: float = 300.0
    title: str = "tokenize"
    unit: str = "s of audio"

    @property
    def count(self) -> int:
        return -(-len(self.source) // self.per_shard)

    def identity(self) -> Mapping[str, Any]:
        values = {"source": self.source.fingerprint(), "model": self.model}
        return values | {"tail": self.tail, "per_shard": self.per_shard}

    def path(self, shard: int) -> Path:
        return datasets.shard_path(self.folder, NAME, shard, self.count)

    def __call__(self, shard: int) -> Summary:
        numbers = range(shard * self.per_shard, min((shard + 1) * self.per_shard, len(self.source)))
        records: dict[int, Record] = {}
        wavs: dict[tuple[int, int], np.ndarray] = {}
        problems: dict[int, str] = {}
        for number in numbers:
            try:
                record = self.source[number]
                heard = {(number, k): self._heard(part) for k, part in enumerate(record.parts) if _waits(part)}
            except (ValueError, OSError) as error:
                problems[number] = self._problem(number, str(error))
            else:
                records[number] = record
                wavs |= heard
        coded: dict[tuple[int, int], Codes] = {}
        for keys in batches({key: len(wav) for key, wav in wavs.items()}, int(self.batch_seconds * RATE)):
            for key, codes in zip(keys, self._codes([wavs[key] for key in keys]), strict=True):
                if isinstance(codes, Codes) and len(codes.linguistic) >= 2 and len(codes.semantic) >= 3:
                    coded[key] = codes
                    continue
                seconds = len(wavs[key]) / RATE
                why = codes if isinstance(codes, str) else f"{seconds:.3f} s of audio gives no whole group of codes"
                problems[key[0]] = self._problem(key[0], f"record {records[key[0]].id!r}: {why}")
        done = [_with_codes(records[n], n, coded) for n in records if n not in problems]
        datasets.write_shard(self.path(shard), done)
        seconds = sum(len(wavs[key]) for key in coded) / RATE
        listed = [Problem(f"record {number}", why) for number, why in sorted(problems.items())]
        return Summary(len(numbers), len(done), seconds, listed)

    def _heard(self, part: Part) -> np.ndarray:
        wav, rate = waveform(part.sound)  # type: ignore[arg-type]
        if not len(wav):
            raise ValueError("audio of zero duration")
        return np.concatenate([resample(wav, rate, RATE), np.zeros(round(self.tail * RATE), np.float32)])

    def _codes(self, wavs: list[np.ndarray]) -> Iterator[Codes | str]:
        """The codes of each waveform, or why there are none: one bad waveform does not spoil its batch."""
        ears = _loaded(self.ears)
        try:
            yield from (Codes(*codes) for codes in ears(wavs))
        except ValueError:
            for wav in wavs:
                try:
                    yield Codes(*ears([wav])[0])
                except ValueError as error:
                    yield str(error)

    def _problem(self, number: int, why: str) -> str:
        if self.strict:
            raise ValueError(f"record {number}: {why}")
        return why


def tokenize(job: TokenizeJob, *, processes: int = 1, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Make every shard that is missing, then the report and the index. Returns the report."""
    return finish(job, sharded.run(job, processes=processes, say=say))


def finish(job: TokenizeJob, summaries: Sequence[Summary]) -> dict[str, Any]:
    """The report, then the index that makes the folder a dataset. Raises ``ValueError`` if no record is left."""
    report = sharded.report(job, summaries)
    if not report["done"]:
        raise ValueError(f"{job.folder}: none of {report['records']} records could be tokenized; see {sharded.REPORT}")
    sizes = [job.path(shard).stat().st_size for shard in range(job.count)]
    datasets.write_info(job.folder, [summary.done for summary in summaries], sizes)
    return report


def batches(lengths: Mapping[Any, int], most: int) -> Iterator[list[Any]]:
    """Keys in groups of like length, at most ``most`` when padded to the longest (or one key)."""
    group: list[Any] = []
    for key in sorted(lengths, key=lambda key: (-lengths[key], key)):
        if group and lengths[group[0]] * (len(group) + 1) > most:
            yield group
            group = []
        group.append(key)
    if group:
        yield group


_EARS: dict[Any, Ears] = {}  # of this process


def _loaded(make: Callable[[], Ears]) -> Ears:
    if make not in _EARS:
        _EARS.clear()
        _EARS[make] = make()
    return _EARS[make]


def _waits(part: Part) -> bool:
    return part.sound is not None and part.codes is None


def _with_codes(record: Record, number: int, coded: Mapping[tuple[int, int], Codes]) -> Record:
    parts = record.parts
    return record.with_parts(
        [part._replace(sound=None, codes=coded.get((number, k), part.codes)) for k, part in enumerate(parts)]
    )
