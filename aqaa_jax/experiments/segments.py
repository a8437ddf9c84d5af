"""Answers that are to change their voice on the way: each half's rate or pitch against what was asked.

The question asks for the answer twice, in two ways. The sound is cut at its longest pause, whatever ids made it, so
that answers without markers are cut as those with. A half has its style if, of the way from the recorded neutral
sentence to the recorded one in that style, it goes more than half (on a log scale; rate for slow and fast, F0 for
high and low). The recorded sentences are those of what the recogniser hears in the half; where it hears none there is
no style.

The *control* is the same measure of the recorded answers through tokens and vocoder: what a perfect decoder would get.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aqaa_jax.atomic import read_json, write_json
from aqaa_jax.data.corpus import answer_id, answer_utterances
from aqaa_jax.data.questions import answers
from aqaa_jax.data.rendering import render
from aqaa_jax.data.tasks import load_audio
from aqaa_jax.dsp import wav as wavs
from aqaa_jax.evaluation.cases import CaseSet
from aqaa_jax.evaluation.metrics import active_seconds, median_f0
from aqaa_jax.evaluation.pocket import ASKED, SPOKEN, PocketSets
from aqaa_jax.evaluation.sphinx import transcribe_many
from aqaa_jax.experiments.answers import answered
from aqaa_jax.experiments.measures import Cell, Say, Table
from aqaa_jax.inference.answer import Aqaa
from aqaa_jax.recipe.folders import run_system

FLOOR_DB = -35.0  # below the loudest 10 ms: a pause
SHORTEST_PAUSE = 5  # of 10 ms
MIDDLE = (0.15, 0.85)  # of the speech: where the middle of the pause between the halves may be
METRICS = ("first_style", "second_style", "both_styles", "content")
Asked = tuple[str, str, str]  # the right sentence and two styles
Row = tuple[bool, bool, bool, bool]
Halves = tuple[np.ndarray, np.ndarray]


def table(cell: Cell, say: Say) -> Table:
    """Ask for two styles, cut the answers, measure the halves."""
    c = cell.config
    sets = PocketSets(cell.common / "speech", questions=c.questions, seed=c.seed)
    cases = [case for split in c.splits for case in sets.changing(split)]
    run = answered(cell, CaseSet("changing", tuple(cases)), say, "changing")
    rate = cell.recipe.system.vocoder.hift.sample_rate
    lines = run.answers.results()
    spoken = [wavs.read(run.folder / lines[case.id]["wav"])[0] if _speaks(lines, case.id) else None for case in cases]
    asked = [(case.answer, case.tags["style"], case.tags["then"]) for case in cases]
    voice = Recorded(cell.common / "speech")
    count = [float(case.id in lines) for case in cases]
    metrics = _columns("", judged(spoken, asked, rate, voice), count)
    metrics |= _columns("control ", _control(cell, asked, rate, voice), [1.0] * len(cases))
    return Table([case.id for case in cases], metrics, len(run.answers.failures()))


def _columns(prefix: str, rows: Sequence[Row], count: Sequence[float]) -> dict[str, list[tuple[float, float]]]:
    return {
        prefix + name: [(float(row[k]) * n, n) for row, n in zip(rows, count, strict=True)]
        for k, name in enumerate(METRICS)
    }


def _control(cell: Cell, asked: Sequence[Asked], rate: int, voice: Recorded) -> list[Row]:
    """The recorded answers' own codes, joined and spoken by the vocoder that all arms share: the best that can be."""
    path = cell.common / "held_out" / f"segments-{cell.config.seed}-{len(asked)}.json"
    if not path.exists():
        model = Aqaa(run_system(cell.recipe, cell.folder, cell.stage))
        codes = [
            np.asarray(model.system.vocab.vocoder_codes(ids))
            for ids in load_audio(cell.folder / "tokenize" / "answers.npz")
        ]
        both = [np.concatenate([codes[answer_id(sentence, s)] for s in styles]) for sentence, *styles in asked]
        rows = judged(model.speak(both), asked, rate, voice)
        write_json(path, {"rows": rows})
    return [tuple(row) for row in read_json(path)["rows"]]


def _speaks(lines: dict, key: str) -> bool:
    return "wav" in lines.get(key, {})


def judged(spoken: Sequence[np.ndarray | None], asked: Sequence[Asked], rate: int, voice: Recorded) -> list[Row]:
    """``METRICS`` of every answer."""
    cut = [None if wav is None else halves(wav, rate) for wav in spoken]
    heard = iter(transcribe_many(answers(), [half for pair in cut if pair for half in pair], rate))
    out = []
    for pair, (sentence, *styles) in zip(cut, asked, strict=True):
        if pair is None:  # silent, or one breath: it has not been said twice
            out.append((False, False, False, False))
            continue
        said = [next(heard) for _ in pair]
        first, second = (
            voice.has(style, half, rate, text) for style, half, text in zip(styles, pair, said, strict=True)
        )
        out.append((first, second, first and second, said == [sentence] * 2))
    return out


def halves(wav: np.ndarray, rate: int) -> Halves | None:
    """``wav`` cut in the middle of its longest pause, None if it has none in the middle of its speech."""
    hop = rate // 100
    frames = np.asarray(wav, np.float64)[: len(wav) // hop * hop].reshape(-1, hop)
    level = np.sqrt((frames**2).mean(axis=1))
    sounding = np.flatnonzero(level > max(1e-5, level.max(initial=0.0) * 10 ** (FLOOR_DB / 20)))
    pauses = np.diff(sounding) - 1
    if not len(pauses):
        return None
    centres = (sounding[:-1] + sounding[1:] + 1) / 2
    place = (centres - sounding[0]) / (sounding[-1] - sounding[0] + 1)
    pauses = np.where((place > MIDDLE[0]) & (place < MIDDLE[1]), pauses, 0)
    if pauses.max() < SHORTEST_PAUSE:
        return None
    at = int(centres[int(np.argmax(pauses))] * hop)
    return wav[:at], wav[at:]


class Recorded:
    """Length and pitch of the recorded answers, measured when asked for."""

    def __init__(self, cache: Path):
        self._clips = render([item.utterance for item in answer_utterances()], cache, (ASKED, SPOKEN))
        self._known: dict[tuple[str, str, bool], float] = {}

    def has(self, style: str, wav: np.ndarray, rate: int, sentence: str) -> bool:
        """Whether ``wav``, which says ``sentence``, is nearer to the recording in ``style`` than to the neutral one."""
        if not sentence:
            return False
        in_time = style in ("slow", "fast")
        ours = _measured(wav, rate, in_time)
        neutral, wanted = (self._measured(sentence, s, in_time) for s in ("neutral", style))
        if not all(math.isfinite(x) and x > 0 for x in (ours, neutral, wanted)):
            return False
        return math.log(ours / neutral) / math.log(wanted / neutral) > 0.5

    def _measured(self, sentence: str, style: str, in_time: bool) -> float:
        key = sentence, style, in_time
        if key not in self._known:
            self._known[key] = _measured(self._clips[answer_id(sentence, style)].wavs[SPOKEN], SPOKEN, in_time)
        return self._known[key]


def _measured(wav: np.ndarray, rate: int, in_time: bool) -> float:
    return active_seconds(wav, rate) if in_time else median_f0(wav, rate)
