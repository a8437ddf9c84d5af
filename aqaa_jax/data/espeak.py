"""Speech from text with espeak-ng (the ``espeakng-loader`` wheel), as a pure function of each request.

The engine lives in worker processes (``espeak_worker.py``), so that the caller, which has JAX and its threads loaded,
never forks. The same request gives the same samples in any order, process and number of workers.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

SAMPLE_RATE = 22050  # what espeak-ng produces
PIPE_BYTES = 1 << 20  # how far a worker may run ahead of the reader
WORKER = Path(__file__).with_name("espeak_worker.py")


@dataclass(frozen=True)
class Utterance:
    """One request: what to say and how. ``rate_wpm`` words per minute, ``pitch`` 0-100 (50 is the voice's own)."""

    text: str
    voice: str
    rate_wpm: int = 150
    pitch: int = 50
    seed: int = 3


class Speech(NamedTuple):
    """``wav`` float32 in [-1, 1] at 22,050 Hz; ``phones``: (IPA without stress marks, start sample), in time order.

    An empty IPA string is a pause. A phone lasts until the next one starts.
    """

    wav: np.ndarray
    phones: tuple[tuple[str, int], ...]


def speech_stream(requests: Sequence[Utterance], workers: int = 2) -> Iterator[Speech]:
    """Yield the speech of every request in order, while ``workers`` processes run a little ahead.

    Raises ``ValueError`` for a voice or text espeak-ng refuses, ``RuntimeError`` if the engine dies.
    """
    workers = max(1, min(workers, len(requests)))
    with tempfile.TemporaryFile() as errors:
        processes = [_start(requests[k::workers], errors) for k in range(workers)]
        try:
            for k in range(len(requests)):
                yield _read(processes[k % workers], requests[k], errors)
        finally:
            for process in processes:
                process.kill()
                process.wait()
                _pipe(process.stdout).close()


def synthesize(
    requests: Sequence[Utterance], workers: int = 2, progress: Callable[[int, int], None] | None = None
) -> list[Speech]:
    """The speech of every request; ``progress(done, total)`` is called after each."""
    out: list[Speech] = []
    for speech in speech_stream(requests, workers):
        out.append(speech)
        if progress:
            progress(len(out), len(requests))
    return out


def _start(requests: Sequence[Utterance], errors) -> subprocess.Popen:
    import espeakng_loader

    # The library adds "/espeak-ng-data" to the folder it is given.
    data = Path(espeakng_loader.get_data_path()).parent
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(WORKER), espeakng_loader.get_library_path(), str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        pipesize=PIPE_BYTES,
    )
    lines = [json.dumps([r.text, r.voice, r.rate_wpm, r.pitch, r.seed]) + "\n" for r in requests]
    try:
        _pipe(process.stdin).write("".join(lines).encode())
        _pipe(process.stdin).close()
    except BrokenPipeError:
        pass  # it died at the start; reading the first record reports why
    return process


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "the process was started without a pipe"
    return stream


def _read(process: subprocess.Popen, request: Utterance, errors) -> Speech:
    records = _pipe(process.stdout)
    header = records.read(12)
    sizes = struct.unpack("<iii", header) if len(header) == 12 else (0, 0, 0)
    body = records.read(sizes[1] + sizes[2])
    if len(header) < 12 or len(body) < sizes[1] + sizes[2]:
        process.wait()
        errors.seek(0)
        raise RuntimeError(f"espeak-ng stopped at {request}: {errors.read().decode(errors='replace').strip()[-500:]}")
    phones = json.loads(body[: sizes[1]])
    if sizes[0] == 0:
        raise ValueError(f"{phones} (request {request})")
    if sizes[0] != SAMPLE_RATE:
        raise ValueError(f"espeak-ng speaks at {sizes[0]} Hz with voice {request.voice!r}; expected {SAMPLE_RATE}")
    pcm = np.frombuffer(body[sizes[1] :], np.int16)
    return Speech(pcm.astype(np.float32) / 32768.0, tuple((name, start) for name, start in phones))
