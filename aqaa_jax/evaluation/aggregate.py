"""The last step's numbers: figures with 95 % intervals, per group and per tag, with controls and failures.

Proportions have the Wilson interval (a bootstrap of all-right or all-wrong has no width); everything else has the
percentile bootstrap over cases. What failed is counted and left out of the figure, never scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from aqaa_jax.dsp import wav as wavs
from aqaa_jax.evaluation import metrics
from aqaa_jax.evaluation.cases import Case
from aqaa_jax.evaluation.judging import CONTROLS
from aqaa_jax.evaluation.metrics import Estimate
from aqaa_jax.evaluation.run import Run
from aqaa_jax.evaluation.sphinx import normalize_text

Line = Mapping[str, Any]
Figures = dict[str, dict[str, Any]]
MEANS = ("length_ratio", "seconds", "words_per_second", "stoi", "pesq")
RATES = {"stopped": "stop_rate", "repaired": "repair_rate", "repeats": "repeat_rate", "aligned": "alignment"}


def aggregate(run: Run) -> dict[str, Any]:
    """Everything the report says, as plain JSON values."""
    groups: dict[str, list[Case]] = {}
    for case in run.cases.cases:
        groups.setdefault(case.group, []).append(case)
    judged = {name: run.judgements(name).lines for name in run.judges}
    measured = run.measures.results()
    compared = [case for case in run.cases.cases if case.compared_to]
    return {
        "set": run.cases.name,
        "about": run.about,
        "groups": {group: _figures(cases, judged, measured) for group, cases in groups.items()},
        "tags": {group: tags for group, cases in groups.items() if (tags := _by_tag(cases, judged))},
        "controls": {name: _controls(lines) for name, lines in judged.items()},
        **({"voice_control": _voice_control(run, compared)} if compared else {}),
        "failures": _failures(run, judged),
    }


def _figures(cases: Sequence[Case], judged: Mapping[str, Mapping[str, Line]], measured: Mapping[str, Line]) -> Figures:
    out: Figures = {}
    for name, lines in judged.items():
        for kind in ("text", "speech"):
            found = [lines[key] for case in cases if (key := f"{kind}/{case.id}") in lines]
            if found:
                out[f"{kind} {name}"] = _judged(found)
    rows = [measured[case.id] for case in cases if case.id in measured]
    for key, name in RATES.items():
        _add(out, name, [row[key] for row in rows if key in row], metrics.proportion)
    _add(out, "alignment_wer", [row["alignment_edits"] for row in rows if "alignment_edits" in row], metrics.error_rate)
    for key in MEANS:
        _add(out, key, [row[key] for row in rows if key in row], metrics.bootstrap)
    _add(
        out, "median_f0", [row["f0"] for row in rows if "f0" in row], lambda x: metrics.bootstrap(x, statistic="median")
    )
    return out


def _add(out: Figures, name: str, values: Sequence[Any], estimate: Callable[[Sequence[Any]], Estimate]) -> None:
    if values:
        out[name] = plain(estimate(values))


def _judged(lines: Iterable[Line]) -> dict[str, Any]:
    """The figure of one judge over lines of one kind."""
    lines = list(lines)
    good = [line for line in lines if "failure" not in line]
    if good and "edits" in good[0]:
        estimate = metrics.error_rate([(line["edits"], line["of"]) for line in good])
    else:
        scores = [line["score"] for line in good]
        binary = bool(scores) and set(scores) <= {0, 1}
        estimate = metrics.proportion(scores) if binary else metrics.bootstrap(scores)
    failed = len(lines) - len(good)
    return plain(estimate) | ({"failures": failed} if failed else {})


def _by_tag(cases: Sequence[Case], judged: Mapping[str, Mapping[str, Line]]) -> dict[str, dict[str, Figures]]:
    """The judges' figures for every value of every tag that has more than one."""
    out: dict[str, dict[str, Figures]] = {}
    for tag in sorted({tag for case in cases for tag in case.tags}):
        values = sorted({case.tags[tag] for case in cases if tag in case.tags})
        if len(values) > 1:
            members = {value: [case for case in cases if case.tags.get(tag) == value] for value in values}
            out[tag] = {value: _figures(chosen, judged, {}) for value, chosen in members.items()}
    return out


def _controls(lines: Mapping[str, Line]) -> dict[str, Any]:
    """A judge's figure of the answers that were controlled, and of each control, and whether it tells them apart."""
    of = {kind: [line for key, line in lines.items() if key.startswith(f"{kind}/")] for kind in ("speech", *CONTROLS)}
    controlled = {line["case"] for kind in CONTROLS for line in of[kind]}
    of["speech"] = [line for line in of["speech"] if line["case"] in controlled]
    out: dict[str, Any] = {kind: _judged(found) for kind, found in of.items() if found}
    better = -1 if any("edits" in line for found in of.values() for line in found) else 1
    answers = out.get("reference", out.get("speech"))
    for kind in ("silence", "wrong_answer", "swapped_pair"):
        if answers and kind in out:
            gap = better * (answers["value"] - out[kind]["value"])
            apart = answers["low"] > out[kind]["high"] if better > 0 else answers["high"] < out[kind]["low"]
            out[kind]["told_apart"] = bool(gap > 0 and apart)
    return out


def right_way(change: str, ratio: float) -> bool:
    """Whether a ratio of rates or pitches is on the side that ``change`` asks for."""
    return ratio > 1 if change in ("fast", "high") else ratio < 1


def voice_ratios(run: Run, cases: Sequence[Case]) -> dict[str, float]:
    """By case: the answer's rate (slow, fast) or pitch (high, low) over that of the same question asked plainly.

    Where the two answers differ in text their lengths do not compare: those pairs are left out of slow and fast. What
    has no voice to measure is nan.
    """
    answers, out = run.answers.results(), {}
    for case in cases:
        pair = [answers.get(key, {}) for key in (case.id, case.compared_to)]
        if not all("wav" in answer for answer in pair):
            continue
        (ours, rate), (plain_one, _) = (wavs.read(run.folder / answer["wav"]) for answer in pair)
        if case.change in ("slow", "fast"):
            if normalize_text(pair[0]["text"]) != normalize_text(pair[1]["text"]):
                continue
            ratio = metrics.speaking_rate(ours, plain_one, rate)
        else:
            ratio = metrics.median_f0(ours, rate) / metrics.median_f0(plain_one, rate)
        out[case.id] = ratio
    return out


def _voice_control(run: Run, cases: Sequence[Case]) -> dict[str, Any]:
    """Does a request move the answer's rate or pitch the right way?"""
    found, ratios = voice_ratios(run, cases), {}
    for case in cases:
        if case.id in found:
            ratios.setdefault(case.change, []).append(found[case.id])
    right = {c: [right_way(c, r) for r in rs] for c, rs in ratios.items()}
    return {
        "right_direction": plain(metrics.proportion([hit for hits in right.values() for hit in hits])),
        "by_change": {change: plain(metrics.proportion(hits)) for change, hits in right.items()},
        "median_ratio": {
            change: plain(metrics.bootstrap([r for r in rs if not math.isnan(r)], statistic="median"))
            for change, rs in ratios.items()
        },
    }


def _failures(run: Run, judged: Mapping[str, Mapping[str, Line]]) -> dict[str, dict[str, str]]:
    steps = {"answers": run.answers.failures(), "transcripts": run.transcripts.failures()}
    for name, lines in judged.items():
        steps[name] = {key: line["failure"] for key, line in lines.items() if "failure" in line}
    return {step: found for step, found in steps.items() if found}


def plain(estimate: Estimate) -> dict[str, Any]:
    """An estimate as rounded JSON values; what is not a number is null."""
    values = {k: float(getattr(estimate, k)) for k in ("value", "low", "high")}
    rounded = {k: round(v, 4) if np.isfinite(v) else None for k, v in values.items()}
    return {**rounded, "n": int(estimate.n)}
