"""What a sweep has found so far: figures of every arm with intervals over questions and seeds, and verdicts.

The rule, the same for every claim. The gain of the better arm over each other one is a difference of shares, or for
perplexities and error rates the part by which they fall; its 95 % interval is a bootstrap over seeds and cases at once,
case against the same case. *Reproduced*: every interval lies above 0. *Not reproduced*: some interval lies below the
margin that would matter. *Undecided*: neither, or fewer than ``SEEDS`` seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aqaa_jax.atomic import read_json
from aqaa_jax.evaluation.aggregate import plain
from aqaa_jax.evaluation.metrics import Estimate, crossed, proportion
from aqaa_jax.experiments.config import Claim, SweepConfig
from aqaa_jax.experiments.measures import read_table, table_path
from aqaa_jax.version import __version__

SEEDS = 3  # fewer decide nothing
RULE = (
    "reproduced: the 95 % interval of every gain lies above 0; not reproduced: that of some gain lies below the "
    f"margin; undecided: neither, or fewer than {SEEDS} seeds. Intervals: bootstrap over seeds and cases."
)
Tables = dict[str, dict[str, np.ndarray]]  # arm -> metric -> [seeds, cases, 2]


def gather(sweep: SweepConfig, run_dir: Path) -> dict[str, Any]:
    """All figures that are there, as plain JSON values."""
    tables, failures, cells = _tables(sweep, run_dir)
    return {
        "name": sweep.name,
        "config": sweep.config,
        "version": __version__,
        "cells": {"measured": sum(cells.values()), "of": sum(len(sweep.seeds_of(arm)) for arm in sweep.arms)},
        "cpu_hours": round(_cpu_seconds(run_dir) / 3600, 3),
        "arms": {
            arm: {
                "seeds": cells[arm],
                "failures": failures[arm],
                "figures": {metric: _figure(metric, table) for metric, table in tables[arm].items()},
                "paper": dict(sweep.arms[arm].paper),
            }
            for arm in sweep.arms
        },
        "rule": RULE,
        "claims": [_claim(claim, tables, cells) for claim in sweep.claims],
    }


def _tables(sweep: SweepConfig, run_dir: Path) -> tuple[Tables, dict[str, int], dict[str, int]]:
    """The tables of all cells whose measures are whole, how many answers failed, and how many such cells there are."""
    tables: Tables = {}
    failures, cells = dict.fromkeys(sweep.arms, 0), dict.fromkeys(sweep.arms, 0)
    for arm in sweep.arms:
        columns: dict[str, list[np.ndarray]] = {}
        for seed in sweep.seeds_of(arm):
            paths = [table_path(run_dir / arm / f"seed-{seed}", kind) for kind in sweep.measure.kinds]
            if not all(path.exists() for path in paths):
                continue
            cells[arm] += 1
            for table in map(read_table, paths):
                failures[arm] += table.failures
                for metric, pairs in table.metrics.items():
                    columns.setdefault(metric, []).append(np.asarray(pairs, np.float64))
        # A metric that a seed lacks (no answer had text, say) counts nothing there.
        tables[arm] = {metric: np.stack(found) for metric, found in columns.items()}
    return tables, failures, cells


def _figure(metric: str, table: np.ndarray) -> dict[str, Any]:
    """The figure of all seeds with its interval, and of each seed alone."""
    show = np.exp if metric.endswith("_ppl") else np.asarray
    totals = table.sum(axis=1)
    each = [float(show(s / n)) if n else None for s, n in totals.tolist()]
    estimate = crossed([table], show)
    if estimate.low == estimate.high and estimate.value in (0.0, 1.0):  # a bootstrap of all alike has no width
        estimate = proportion([bool(estimate.value)] * int((table[0, :, 1] > 0).sum()))._replace(n=estimate.n)
    return plain(estimate) | {"by_seed": [None if x is None else round(x, 4) for x in each]}


def gain(metric: str, better: np.ndarray, other: np.ndarray) -> Estimate:
    """By how much ``better`` [seeds, cases, 2] is better than ``other``: a difference, or the part that fell."""
    if metric.endswith("_ppl"):
        return crossed([better, other], lambda a, b: 1 - np.exp(a - b))
    if metric.endswith("_wer"):
        return crossed([better, other], lambda a, b: b - a)
    return crossed([better, other], lambda a, b: a - b)


def verdict(gains: list[Estimate], margin: float, seeds: int) -> str:
    """The rule above."""
    if seeds < SEEDS or not all(np.isfinite([g.low, g.high]).all() for g in gains):
        return "undecided"
    if all(g.low > 0 for g in gains):
        return "reproduced"
    return "not reproduced" if any(g.high < margin for g in gains) else "undecided"


def _claim(claim: Claim, tables: Mapping[str, Mapping[str, np.ndarray]], cells: Mapping[str, int]) -> dict[str, Any]:
    names = (claim.better, *claim.than)
    out: dict[str, Any] = {"says": claim.says, "metric": claim.metric, "better": claim.better, "margin": claim.margin}
    found = {arm: tables[arm].get(claim.metric) for arm in names}
    seeds = min(cells[arm] for arm in names)
    if any(table is None for table in found.values()):
        return out | {"gains": {}, "verdict": "undecided"}
    gains = {arm: gain(claim.metric, *_alike(found[claim.better], found[arm])) for arm in claim.than}
    return out | {
        "gains": {arm: plain(estimate) for arm, estimate in gains.items()},
        "verdict": verdict(list(gains.values()), claim.margin, seeds),
    }


def _alike(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both with the seeds that both have; one of a single seed stands for all of the other's."""
    seeds = min(len(a), len(b)) if min(len(a), len(b)) > 1 else max(len(a), len(b))
    return a[:seeds], b[:seeds]


def _cpu_seconds(run_dir: Path) -> float:
    """Of all stages that ran here; links are not counted twice."""
    done = [path for path in run_dir.glob("*/*/done.json") if not path.parent.is_symlink()]
    done += [path for path in run_dir.glob("*/*/*/done.json") if not path.parent.is_symlink()]
    return sum(float(read_json(path).get("cpu_seconds", 0.0)) for path in done)
