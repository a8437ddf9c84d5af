"""Figures over seeds and cases: intervals that cover, gains with the right sign, and the rule of the verdicts."""

from dataclasses import replace

import numpy as np
import pytest

from aqaa_jax.atomic import write_json
from aqaa_jax.config import from_dict
from aqaa_jax.evaluation.metrics import Estimate, crossed
from aqaa_jax.experiments import show
from aqaa_jax.experiments.config import SweepConfig
from aqaa_jax.experiments.measures import Table, table_path
from aqaa_jax.experiments.results import gain, gather, verdict


def shares(rng, seeds, cases, p):
    hits = rng.random((seeds, cases)) < p
    return np.stack([hits, np.ones_like(hits)], axis=-1).astype(float)


def test_crossed_is_the_ratio_of_sums_and_its_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    table = rng.uniform(1, 5, (3, 40, 2))
    total = table.sum(axis=(0, 1))
    estimate = crossed([table], np.asarray)
    assert estimate.value == pytest.approx(total[0] / total[1]) and estimate.low < estimate.value < estimate.high
    covered = 0
    for trial in range(60):
        found = crossed([shares(np.random.default_rng(trial), 3, 100, 0.6)], np.asarray, resamples=300)
        covered += found.low <= 0.6 <= found.high
    assert covered >= 51  # of 60: near 95 %, less what three seeds lose
    assert np.isnan(crossed([np.zeros((2, 3, 2))], np.asarray).value)


def test_the_same_cases_are_compared_with_one_another():
    """Arms that differ by a constant on cases of very unlike difficulty: the interval of the gain has no width."""
    hard = np.random.default_rng(0).normal(0, 10, (3, 50))
    one, other = (np.stack([hard + add, np.ones_like(hard)], axis=-1) for add in (1.0, 0.0))
    for better in (one, one[:1]):
        difference = crossed([better, other if len(better) == 3 else other[:1]], lambda a, b: a - b)
        assert difference.low == pytest.approx(1) and difference.high == pytest.approx(1)
    alone = crossed([one], np.asarray)
    assert alone.high - alone.low > 2


def test_gains_are_positive_where_the_better_arm_is_better():
    low, high = (np.stack([np.full((3, 9), v), np.ones((3, 9))], axis=-1) for v in (1.0, 2.0))
    assert gain("factuality", high, low).value == pytest.approx(1)
    assert gain("alignment_wer", low, high).value == pytest.approx(1)
    assert gain("tts linguistic_ppl", low, high).value == pytest.approx(1 - np.exp(-1))
    assert gain("tts linguistic_ppl", high, low).value < 0


@pytest.mark.parametrize(
    ("gains", "seeds", "expected"),
    [
        ([(0.1, 0.01, 0.2), (0.5, 0.4, 0.6)], 3, "reproduced"),
        ([(0.1, 0.01, 0.2), (0.5, 0.4, 0.6)], 2, "undecided"),
        ([(0.1, 0.01, 0.2), (0.0, -0.1, 0.1)], 3, "undecided"),
        ([(0.1, 0.01, 0.2), (0.0, -0.04, 0.04)], 3, "not reproduced"),
        ([(-0.3, -0.4, -0.2)], 3, "not reproduced"),
        ([(np.nan, np.nan, np.nan)], 3, "undecided"),
    ],
)
def test_the_rule(gains, seeds, expected):
    assert verdict([Estimate(*g, 10) for g in gains], 0.05, seeds) == expected


def sweep(**changes):
    arms = {"a": {"paper": {"factuality": 0.7}}, "b": {"change": {"text_pieces": 500}}, "none": {"seeds": 1}}
    claim = {"says": "a is better", "metric": "factuality", "better": "a", "than": ["b"], "margin": 0.05}
    values = {"name": "s", "config": "c", "recipe": {}, "arms": arms, "claims": [claim]}
    return replace(from_dict(SweepConfig, values), **changes)


def fill(folder, arm, seeds, p):
    for seed in range(seeds):
        hits = np.random.default_rng([seed, round(100 * p)]).random(100) < p
        pairs = [(float(h), 1.0) for h in hits]
        table = Table([f"{i}" for i in range(100)], {"factuality": pairs}, failures=1)
        write_json(table_path(folder / arm / f"seed-{seed}", "answers"), table._asdict())


def test_results_hold_what_there_is_and_say_what_it_means(tmp_path):
    empty = gather(sweep(), tmp_path)
    assert empty["cells"] == {"measured": 0, "of": 7} and empty["claims"][0]["verdict"] == "undecided"
    assert "not measured" in show.summary(empty)
    fill(tmp_path, "a", 3, 0.8)
    fill(tmp_path, "b", 2, 0.3)
    partly = gather(sweep(), tmp_path)
    assert partly["claims"][0]["verdict"] == "undecided" and partly["claims"][0]["gains"]["b"]["low"] > 0
    fill(tmp_path, "b", 3, 0.3)
    results = gather(sweep(), tmp_path)
    assert results["cells"]["measured"] == 6 and results["claims"][0]["verdict"] == "reproduced"
    figure = results["arms"]["a"]["figures"]["factuality"]
    assert figure["low"] < 0.8 < figure["high"] and len(figure["by_seed"]) == 3 and figure["n"] == 300
    text = show.summary(results)
    assert "**reproduced** – a is better" in text and "paper: factuality" in text and "{'a': 3, 'b': 3}" in text
    assert show.picture(results, tmp_path / "bars.png", ["factuality"], title="t").stat().st_size > 1000
    fill(tmp_path, "none", 1, 0.0)
    none = gather(sweep(), tmp_path)["arms"]["none"]["figures"]["factuality"]
    assert none["value"] == none["low"] == 0 and 0.02 < none["high"] < 0.05  # of 100 cases, not of nothing
    assert show.committed(tmp_path / "missing.json") is None
