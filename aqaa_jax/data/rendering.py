"""Spoken sets on disk: shards written once, read back lazily.

A shard is one uncompressed ``.npz`` of up to ``SHARD`` utterances, named by the hash of its requests and sample rates.
It is written under a temporary name and renamed when whole, so an interrupted run loses at most one shard and the
next run goes on from there; sets that share a prefix share its shards.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from aqaa_jax import atomic
from aqaa_jax.data.espeak import SAMPLE_RATE, Speech, Utterance, speech_stream

SHARD = 256
VERSION = 1  # part of every shard's name: change it when the stored content changes
TAIL_SECONDS = 0.05  # silence kept after the last phone


class Clip(NamedTuple):
    """One utterance: ``wavs`` by sample rate (float32), ``phones`` as (IPA, start in seconds), ``seconds`` long."""

    wavs: dict[int, np.ndarray]
    phones: tuple[tuple[str, float], ...]
    seconds: float


class Clips(Sequence):
    """A rendered set, read from its shards on demand; the few shards read last stay in memory."""

    def __init__(self, paths: Sequence[Path], length: int, keep: int = 4):
        self._paths, self._length, self._keep = tuple(paths), length, keep
        self._open: OrderedDict[int, dict[str, Any]] = OrderedDict()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Clip:
        if not -self._length <= index < self._length:
            raise IndexError(index)
        shard, row = divmod(index % self._length, SHARD)
        arrays = self._shard(shard)
        wavs = {}
        for rate in arrays["rates"].tolist():
            start, stop = arrays[f"offsets_{rate}"][row : row + 2]
            wavs[rate] = arrays[f"pcm_{rate}"][start:stop].astype(np.float32) / 32768.0
        phones = tuple((name, start) for name, start in arrays["phones"][row])
        return Clip(wavs, phones, float(arrays["seconds"][row]))

    def _shard(self, shard: int) -> dict[str, Any]:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        with np.load(self._paths[shard]) as data:
            arrays: dict[str, Any] = {name: data[name] for name in data.files}
        arrays["phones"] = json.loads(arrays["phones"].tobytes())
        self._open[shard] = arrays
        while len(self._open) > self._keep:
            self._open.popitem(last=False)
        return arrays


class Spoken(Protocol):
    """What has an utterance (``corpus.Item``)."""

    @property
    def utterance(self) -> Utterance: ...


def render(
    utterances: Sequence[Utterance | Spoken],
    cache_dir: str | Path,
    rates: Sequence[int] = (16000,),
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Clips:
    """Speak what the cache lacks and return the whole set. ``progress(done, total)`` counts utterances."""
    requests = [u if isinstance(u, Utterance) else u.utterance for u in utterances]
    folder = Path(cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    shards = [requests[k : k + SHARD] for k in range(0, len(requests), SHARD)]
    paths = [folder / f"speech-{_key(shard, rates)}.npz" for shard in shards]
    missing = [k for k, path in enumerate(paths) if not path.exists()]
    done = len(requests) - sum(len(shards[k]) for k in missing)
    speech = speech_stream([u for k in missing for u in shards[k]], workers) if missing else iter(())
    for k in missing:
        spoken = []
        for _ in shards[k]:
            spoken.append(next(speech))
            done += 1
            if progress:
                progress(done, len(requests))
        _write(paths[k], spoken, rates)
    return Clips(paths, len(requests))


def resample(wav: np.ndarray, source: int, target: int) -> np.ndarray:
    """Band-limited resampling (soxr, high quality)."""
    import soxr

    return wav if source == target else soxr.resample(wav, source, target, quality="HQ")


def _key(requests: Sequence[Utterance], rates: Sequence[int]) -> str:
    described = [VERSION, list(rates), [[u.text, u.voice, u.rate_wpm, u.pitch, u.seed] for u in requests]]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]


def _write(path: Path, spoken: Sequence[Speech], rates: Sequence[int]) -> None:
    spoken = [_trimmed(s) for s in spoken]
    phones = [[(name, round(start / SAMPLE_RATE, 6)) for name, start in s.phones] for s in spoken]
    arrays: dict[str, Any] = {
        "rates": np.array(rates, np.int32),
        "seconds": np.array([len(s.wav) / SAMPLE_RATE for s in spoken]),
        "phones": np.frombuffer(json.dumps(phones, ensure_ascii=False).encode(), np.uint8),
    }
    for rate in rates:
        pcm = [_int16(resample(s.wav, SAMPLE_RATE, rate)) for s in spoken]
        arrays[f"pcm_{rate}"] = np.concatenate(pcm)
        arrays[f"offsets_{rate}"] = np.cumsum([0] + [len(p) for p in pcm])
    with atomic.written(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)


def _trimmed(speech: Speech) -> Speech:
    """Without the long digital silence espeak-ng appends: at most ``TAIL_SECONDS`` after the last sound."""
    sounding = np.flatnonzero(speech.wav)
    end = (int(sounding[-1]) if len(sounding) else 0) + 1 + round(TAIL_SECONDS * SAMPLE_RATE)
    return Speech(speech.wav[:end], tuple(p for p in speech.phones if p[1] < end))


def _int16(wav: np.ndarray) -> np.ndarray:
    return np.clip(np.round(wav * 32768.0), -32768, 32767).astype(np.int16)
