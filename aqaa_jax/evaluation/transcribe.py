"""The second step: what an outside recogniser hears in every answer, in silence, and in recorded right answers."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aqaa_jax.dsp import wav as wavs
from aqaa_jax.evaluation.run import Run
from aqaa_jax.evaluation.sphinx import transcribe_many

SILENCE = "control/silence"  # the transcript of a second of zeros
REFERENCE = "reference/"  # before a case's id: the transcript of its recorded right answer
RATE = 16000  # of Whisper, and of silence
BATCH = 50
Waveform = tuple[np.ndarray, int]


class Transcriber(Protocol):
    """Waveforms (and their rates) to text, told what can be said where that is known; ``name`` says who listened."""

    name: str

    def __call__(self, waveforms: Sequence[Waveform], sentences: Sequence[str]) -> list[str]: ...


class Pocketsphinx:
    """The default: with the sentences of a closed domain, or with general English (``evaluation/sphinx.py``)."""

    name = "pocketsphinx"

    def __call__(self, waveforms: Sequence[Waveform], sentences: Sequence[str]) -> list[str]:
        out = [""] * len(waveforms)
        for rate in sorted({rate for _, rate in waveforms}):
            at = [i for i, (_, its) in enumerate(waveforms) if its == rate]
            heard = transcribe_many(sentences, [waveforms[i][0] for i in at], rate)
            for i, text in zip(at, heard, strict=True):
                out[i] = text
        return out


class Whisper:
    """A Whisper model through transformers (extra ``torch``); ``model`` is its name or folder."""

    def __init__(self, model: str):
        try:
            from transformers import pipeline  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError("the transcriber whisper needs transformers: pip install 'aqaa_jax[torch]'") from None
        self.name = f"whisper, {model}"
        self._run = pipeline("automatic-speech-recognition", model=model)

    def __call__(self, waveforms: Sequence[Waveform], sentences: Sequence[str]) -> list[str]:
        return [self._one(wav, rate) for wav, rate in waveforms]

    def _one(self, wav: np.ndarray, rate: int) -> str:
        long = len(wav) > 30 * rate  # what goes on beyond its window it reads by time stamps
        raw = wavs.resample(wav, rate, RATE)  # transformers would need torchaudio for it
        return self._run({"raw": raw, "sampling_rate": RATE}, return_timestamps=long)["text"].strip()


class Command:
    """Any program: ``{wav}`` in its command line is the path of a wav file, its output is what it heard."""

    def __init__(self, command: str, folder: Path):
        if "{wav}" not in command:
            raise ValueError(f"transcriber command {command!r} has no {{wav}} where the recording's path goes")
        self.name, self._command, self._folder = f"command, {command}", command, folder

    def __call__(self, waveforms: Sequence[Waveform], sentences: Sequence[str]) -> list[str]:
        return [self._one(wav, rate) for wav, rate in waveforms]

    def _one(self, wav: np.ndarray, rate: int) -> str:
        path = self._folder / ".heard.wav"
        wavs.write(path, wav, rate)
        try:
            line = [part.replace("{wav}", str(path)) for part in shlex.split(self._command)]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
        finally:
            path.unlink(missing_ok=True)
        if done.returncode:
            raise ValueError(f"{line[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return done.stdout.strip()


def transcriber(which: str, run: Run) -> Transcriber:
    """``pocketsphinx``, ``whisper:MODEL`` or ``command:PROGRAM … {wav}``. Raises ``ValueError`` for another."""
    kind, _, argument = which.partition(":")
    if kind == "pocketsphinx" and not argument:
        return Pocketsphinx()
    if kind == "whisper" and argument:
        return Whisper(argument)
    if kind == "command" and argument:
        return Command(argument, run.folder)
    raise ValueError(f"transcriber {which!r}; expected pocketsphinx, whisper:MODEL or command:PROGRAM … {{wav}}")


def transcribe(run: Run, listen: Transcriber, say: Callable[[str], None]) -> None:
    """Fill ``transcripts.jsonl``. A recording that cannot be transcribed is a failure, not an empty transcript."""
    answers, journal = run.answers.results(), run.transcripts
    paths = {key: run.folder / line["wav"] for key, line in answers.items() if "wav" in line}
    recorded = {REFERENCE + c.id: Path(c.answer_audio) for c in run.cases.cases if c.answer_audio and c.id in paths}
    if other := {line["by"] for line in journal.lines.values()} - {listen.name}:
        raise ValueError(f"{journal.path}: made by {', '.join(other)}; remove it to transcribe with {listen.name}")
    first_of: dict[Path, str] = {}  # many cases share one recording of their answer
    for key, path in recorded.items():
        first_of.setdefault(path, key)
    domain = {prefix + c.id: c.domain for c in run.cases.cases for prefix in ("", REFERENCE)}
    domain[SILENCE] = next((c.domain for c in run.cases.cases if c.spoken), "")

    def read(key: str) -> Waveform:
        return (np.zeros(RATE, np.float32), RATE) if key == SILENCE else wavs.read({**paths, **recorded}[key])

    for name in sorted(set(domain.values())):
        sentences = run.cases.sentences.get(name, ())

        def some(keys: list[str], sentences: Sequence[str] = sentences) -> Iterator[dict[str, Any]]:
            yield from _safely(listen, keys, read, sentences)
            say(f"[transcripts] {len(journal.lines)}")

        journal.fill([k for k in (SILENCE, *paths, *first_of.values()) if domain[k] == name], some, BATCH)
    for case in run.cases.cases:
        if case.spoken and case.id in answers and "wav" not in answers[case.id] and not journal.done(case.id):
            journal.add({"id": case.id, "by": listen.name, "heard": "", "unspoken": True})
    done = journal.results()
    for key, path in recorded.items():
        if not journal.done(key) and first_of[path] in done:
            journal.add({**done[first_of[path]], "id": key})


def _safely(
    listen: Transcriber, keys: Sequence[str], read: Callable[[str], Waveform], sentences: Sequence[str]
) -> Iterator[dict[str, Any]]:
    try:
        heard = listen([read(key) for key in keys], sentences)
    except (ValueError, OSError, RuntimeError) as error:
        if len(keys) == 1:
            yield {"id": keys[0], "by": listen.name, "failure": " ".join(str(error).split())}
            return
        for key in keys:
            yield from _safely(listen, [key], read, sentences)
        return
    for key, text in zip(keys, heard, strict=True):
        yield {"id": key, "by": listen.name, "heard": text}
