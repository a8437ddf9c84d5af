"""Spoken answers to held-out questions, through the evaluation harness (``aqaa eval``) with its exact judge.

The paper's judge gives a language model's Chat, Relevance and Factuality. Ours, in a closed domain, needs none:
*factuality* is whether the recogniser hears the right sentence, *relevance* whether it hears any sentence that answers
a question of that family. There is no stand-in for Chat.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from aqaa_jax.checkpoint import hashes
from aqaa_jax.data.questions import answers, questions
from aqaa_jax.evaluation.aggregate import right_way, voice_ratios
from aqaa_jax.evaluation.answering import Answering
from aqaa_jax.evaluation.cases import Case, CaseSet
from aqaa_jax.evaluation.judges import Exact
from aqaa_jax.evaluation.judging import judge
from aqaa_jax.evaluation.measures import measure
from aqaa_jax.evaluation.pocket import ANSWERS, PocketSets
from aqaa_jax.evaluation.run import Run, begin
from aqaa_jax.evaluation.transcribe import Pocketsphinx, transcribe
from aqaa_jax.experiments.measures import Cell, Say, Table
from aqaa_jax.inference.answer import Aqaa
from aqaa_jax.recipe.folders import run_system
from aqaa_jax.training.language import DECODER


def table(cell: Cell, say: Say) -> Table:
    """Ask, listen and judge; everything on the way is kept in ``measure/answers/`` and resumed."""
    c = cell.config
    sets = PocketSets(cell.common / "speech", questions=c.questions, seed=c.seed)
    asked = [case for split in c.splits for case in sets.split(split) if case.group == split]
    asked += sets.voice_control(c.voice_control) if c.voice_control else []
    # The recorded answers are the same for all arms: they are not listened to again.
    cases = CaseSet("sweep", tuple(replace(case, answer_audio="") for case in asked), {ANSWERS: answers()})
    run = answered(cell, cases, say)
    transcribe(run, Pocketsphinx(), say)
    measure(run, say)
    judge(run, Exact(), say, controls=0)
    return Table([case.id for case in cases.cases], _metrics(run), _failed(run))


def answered(cell: Cell, cases: CaseSet, say: Say, name: str = "answers") -> Run:
    """The cell's model asked ``cases``, in ``measure/NAME/``."""
    decoder = hashes.digest(cell.folder / cell.stage / DECODER)
    run = begin(cell.folder / "measure" / name, cases, {"decoder": decoder, "seed": 0})
    if len(run.answers.results()) < len(cases.cases):
        Answering(Aqaa(run_system(cell.recipe, cell.folder, cell.stage))).answer(run, say)
    return run


def _metrics(run: Run) -> dict[str, list[tuple[float, float]]]:
    judged, measured, heard = run.judgements("exact").results(), run.measures.results(), run.transcripts.results()
    asked = [case for case in run.cases.cases if not case.compared_to and case.group != "voice control, plain"]
    compared = [case for case in run.cases.cases if case.compared_to]
    texted = any(line["text"] for line in run.answers.results().values())  # else the arm writes none
    ratios = voice_ratios(run, compared)

    def column(cases: Sequence[Case], lines: Mapping[str, Any], key: str = "{}", value: str = "score"):
        return {
            c.id: (float(lines[k][value]), 1.0) for c in cases if (k := key.format(c.id)) in lines and value in lines[k]
        }

    relevant = {c.id: (float(heard[c.id]["heard"] in _family(c.tags["family"])), 1.0) for c in asked if c.id in heard}
    edits = {key: tuple(line["alignment_edits"]) for key, line in measured.items() if "alignment_edits" in line}
    whole = {key: (float(not line["repaired"]), 1.0) for key, line in measured.items() if "repaired" in line}
    columns = {
        "factuality": column(asked, judged, "speech/{}"),
        "relevance": relevant,
        "written": column(asked if texted else (), judged, "text/{}"),
        "alignment_wer": {c.id: edits[c.id] for c in asked if texted and c.id in edits},
        "stopped": column(asked, measured, value="stopped"),
        "whole": {c.id: whole[c.id] for c in asked if c.id in whole},
        "voice_control": {c.id: (float(right_way(c.change, ratios[c.id])), 1.0) for c in compared if c.id in ratios},
    }
    return {
        name: [found.get(case.id, (0.0, 0.0)) for case in run.cases.cases] for name, found in columns.items() if found
    }


@functools.cache
def _family(family: str) -> frozenset[str]:
    return frozenset(q.answer for q in questions() if q.family == family)


def _failed(run: Run) -> int:
    steps = (run.answers, run.transcripts, run.measures, run.judgements("exact"))
    return sum(len(step.failures()) for step in steps)
