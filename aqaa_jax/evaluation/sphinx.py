"""An outside recogniser: pocketsphinx and its en-us model, told which sentences are possible, or left to guess.

With sentences, a closed grammar holds every one of them, and what is recognised counts only if it is one in full;
without, its own language model of general English decides. It was trained by others and shares nothing with the models
it listens to. It is a pure function of the waveform: the signal is peak-normalised, padded and dithered from a fixed
seed, and cepstral means are taken over the one utterance.

This file imports nothing of the package: ``transcribe_many`` runs it by path in worker processes, so that the caller,
which has JAX loaded, neither forks nor pays for loading it again.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np

SAMPLE_RATE = 16000
PAD_SECONDS = (0.1, 0.2)  # silence added in front and behind
PEAK = 0.7
DITHER = 2.0 / 32768.0
SILENCE_PEAK = 1e-4  # quieter than this (-80 dB) is silence, whatever normalisation would make of it


def normalize_text(text: str) -> str:
    """The form in which sentences are compared: lower case, words of any script only, single spaces."""
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("’", "'")))


class Recogniser:
    """Hears one of ``sentences``, or any words if there are none.

    Raises ``ValueError`` for a word of a sentence that the dictionary lacks.
    """

    def __init__(self, sentences: Sequence[str] = ()):
        from pocketsphinx import Decoder, get_model_path

        common = {"hmm": get_model_path("en-us/en-us"), "samprate": float(SAMPLE_RATE)}
        common |= {"cmn": "batch", "loglevel": "FATAL"}
        self._sentences = {normalize_text(s): s for s in sentences}
        words = get_model_path("en-us/cmudict-en-us.dict")
        if not self._sentences:
            self._decoder = Decoder(dict=words, lm=get_model_path("en-us/en-us.lm.bin"), **common)
            return
        with open(words, encoding="utf-8") as file:
            entries = _entries_for(self._sentences, file.read())
        # A dictionary of the needed words only: the full one takes a second to load.
        with tempfile.TemporaryDirectory() as folder:
            dictionary = os.path.join(folder, "words.dict")
            with open(dictionary, "w", encoding="utf-8") as file:
                file.write("\n".join(entries) + "\n")
            self._decoder = Decoder(dict=dictionary, lm=None, **common)
        self._decoder.add_jsgf_string("answers", _grammar([s.split() for s in self._sentences]))
        self._decoder.activate_search("answers")

    def transcribe(self, wav: np.ndarray, rate: int) -> str:
        """What is heard in ``wav`` (float, any rate); '' when it is no sentence in full, or the wav is silent."""
        pcm = _prepared(wav, rate)
        if pcm is None:
            return ""
        self._decoder.start_utt()
        self._decoder.process_raw(pcm.tobytes(), no_search=False, full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        heard = normalize_text(hypothesis.hypstr) if hypothesis else ""
        return self._sentences.get(heard, "") if self._sentences else heard


def transcribe_many(
    sentences: Sequence[str],
    wavs: Sequence[np.ndarray],
    rate: int,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """``Recogniser(sentences).transcribe`` of every waveform, in order, by ``workers`` processes."""
    out = [""] * len(wavs)
    workers = max(1, min(workers, len(wavs)))
    failures: list[str] = []
    done = [0] * workers

    def work(k: int) -> None:
        with tempfile.TemporaryFile() as errors:
            command = [sys.executable, "-P", os.path.abspath(__file__)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
            assert process.stdin is not None and process.stdout is not None  # both are pipes
            try:
                _send(process.stdin, json.dumps({"sentences": list(sentences), "rate": rate}).encode())
                for i in range(k, len(wavs), workers):
                    _send(process.stdin, np.asarray(wavs[i], np.float32).tobytes())
                    out[i] = _receive(process.stdout).decode()
                    done[k] += 1
                    if progress:
                        progress(sum(done), len(wavs))
                process.stdin.close()
            except (EOFError, BrokenPipeError):
                process.wait()
                errors.seek(0)
                failures.append(errors.read().decode(errors="replace").strip()[-500:])
            finally:
                process.kill()
                process.wait()
                process.stdout.close()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"the recogniser stopped: {failures[0]}")
    return out


def _entries_for(sentences: Iterable[str], dictionary: str) -> list[str]:
    """The dictionary's lines for every word of ``sentences``, all pronunciations."""
    words = {w for s in sentences for w in s.split()}
    lines = [line for line in dictionary.splitlines() if line.split(" ")[0].split("(")[0] in words]
    missing = words - {line.split(" ")[0] for line in lines}
    if missing:
        raise ValueError(f"the recogniser's dictionary lacks {', '.join(sorted(missing))}")
    return lines


def _grammar(sentences: list[list[str]]) -> str:
    """JSGF of exactly these sentences, equally likely, common beginnings shared (several times faster than a list)."""

    def branches(group: list[list[str]]) -> str:
        firsts = sorted({s[0] for s in group if s})
        parts = []
        for word in firsts:
            rest = [s[1:] for s in group if s and s[0] == word]
            follow = branches(rest) if any(rest) else ""
            parts.append(f"/{len(rest)}/ {word} {follow}".strip())
        options = f"( {' | '.join(parts)} )" if len(parts) > 1 else parts[0].split("/ ", 1)[1]
        return f"[ {options} ]" if any(not s for s in group) else options

    return f"#JSGF V1.0; grammar answers; public <answer> = {branches(sentences)} ;"


def _prepared(wav: np.ndarray, rate: int) -> np.ndarray | None:
    """int16 at 16 kHz, ready for the decoder; None for silence."""
    wav = np.asarray(wav, np.float32).reshape(-1)
    if not np.isfinite(wav).all():
        raise ValueError("the waveform has values that are not finite")
    if wav.size == 0 or np.abs(wav).max() < SILENCE_PEAK:
        return None
    if rate != SAMPLE_RATE:
        import soxr

        wav = soxr.resample(wav, rate, SAMPLE_RATE, quality="HQ")
    wav = wav / np.abs(wav).max() * PEAK
    front, back = (round(s * SAMPLE_RATE) for s in PAD_SECONDS)
    wav = np.pad(wav, (front, back)) + DITHER * np.random.default_rng(0).uniform(-1, 1, len(wav) + front + back)
    return np.round(wav * 32767.0).astype(np.int16)


def _send(stream, data: bytes) -> None:
    stream.write(struct.pack("<i", len(data)) + data)
    stream.flush()


def _receive(stream) -> bytes:
    header = stream.read(4)
    if len(header) < 4:
        raise EOFError
    return stream.read(struct.unpack("<i", header)[0])


def _serve() -> None:
    """The worker: a header with sentences and rate, then waveforms in, sentences out, until the input ends."""
    header = json.loads(_receive(sys.stdin.buffer))
    recogniser = Recogniser(header["sentences"])
    while True:
        try:
            data = _receive(sys.stdin.buffer)
        except EOFError:
            return
        _send(sys.stdout.buffer, recogniser.transcribe(np.frombuffer(data, np.float32), header["rate"]).encode())


if __name__ == "__main__":
    _serve()
