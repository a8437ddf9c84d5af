"""What can be measured of an answer without a judge: does it end, repeat itself, say its text; how fast, how high."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from aqaa_jax.dsp import wav as wavs
from aqaa_jax.evaluation import metrics
from aqaa_jax.evaluation.cases import Case
from aqaa_jax.evaluation.run import Run
from aqaa_jax.evaluation.sphinx import normalize_text

BATCH = 50
RATE = 16000  # of STOI and wide-band PESQ


def measure(run: Run, say: Callable[[str], None]) -> None:
    """Fill ``measures.jsonl`` for every answer; needs ``transcripts.jsonl`` where there is speech."""
    answers, heard, journal = run.answers.results(), run.transcripts.results(), run.measures
    cases = {case.id: case for case in run.cases.cases}

    def some(keys: list[str]) -> Iterator[dict[str, Any]]:
        for key in keys:
            yield {"id": key, **_one(run, cases[key], answers[key], heard.get(key, {}).get("heard"))}
        say(f"[measures] {len(journal.lines)}/{len(ready)}")

    ready = [key for key in answers if not cases[key].spoken or key in heard]
    journal.fill(ready, some, BATCH)


def _one(run: Run, case: Case, answer: dict[str, Any], heard: str | None) -> dict[str, Any]:
    out: dict[str, Any] = {k: answer[k] for k in ("stopped", "repaired") if k in answer}
    text = answer["text"]
    if case.written:
        out["repeats"] = metrics.repeats(text)
    if heard is None or "wav" not in answer:
        return out
    wav, rate = wavs.read(run.folder / answer["wav"])
    if case.written:
        out["repeats"] = out["repeats"] or metrics.repeats(heard)
        out["aligned"] = normalize_text(heard) == normalize_text(text) != ""
        out["alignment_edits"] = list(metrics.word_edits(heard, text))
    seconds = metrics.active_seconds(wav, rate)
    pitch = metrics.median_f0(wav, rate)
    out["seconds"] = round(seconds, 3)
    out |= {} if math.isnan(pitch) else {"f0": round(pitch, 2)}
    spoken = len(metrics.words(text or case.answer))
    out |= {"words_per_second": round(spoken / seconds, 3)} if seconds > 0 and spoken else {}
    if case.answer_audio:
        reference, its = wavs.read(case.answer_audio)
        reference = wavs.resample(reference, its, rate)
        out["length_ratio"] = round(metrics.length_ratio(wav, reference), 4)
        if case.task == "resynthesis":  # the one task whose answer runs beside its reference sample by sample
            out |= _intrusive(wavs.resample(wav, rate, RATE), wavs.resample(reference, rate, RATE))
    return out


def _intrusive(wav: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """STOI (Taal et al. 2011) and wide-band PESQ (P.862.2), where the extra ``eval`` is installed."""
    n = min(len(wav), len(reference))
    pair = reference[:n], wav[:n]
    out = {}
    try:
        from pystoi import stoi  # pyright: ignore[reportMissingImports]

        out["stoi"] = round(float(stoi(*pair, RATE)), 4)
    except ImportError:
        pass
    try:
        from pesq import PesqError, pesq  # pyright: ignore[reportMissingImports]
    except ImportError:
        return out
    score = pesq(RATE, *pair, "wb", on_error=PesqError.RETURN_VALUES)
    return out | ({"pesq": round(float(score), 4)} if score > 0 else {})
