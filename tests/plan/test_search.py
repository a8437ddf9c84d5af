"""What would fit, grids and Pareto fronts, with a stand-in for the compiler that knows how memory grows."""

import dataclasses
from types import SimpleNamespace

import pytest

from aqaa_jax.config import DecoderConfig, VocabConfig
from aqaa_jax.plan import search
from aqaa_jax.plan.compile import DoesNotFit, Job
from aqaa_jax.plan.topology import Topology
from aqaa_jax.sharding.chips import chip
from aqaa_jax.training.config import StageConfig

TARGET = Topology("v5p:2x2x1", 1, chip("v5p"), (2, 2, 1), ())
REMAT = {"none": 160.0, "save_qkvo": 80.0, "full": 20.0}


def job(batch=8, **more):
    decoder = DecoderConfig(layers=2, remat=more.pop("remat", "none"))
    return Job(decoder, VocabConfig(), StageConfig(batch=batch, length=64))


@pytest.fixture
def compiler(monkeypatch):
    """Memory: the state (given) and activations of a microbatch; half of the state is the first moment."""

    def install(state):
        def needed(other):
            moment = 0.5 if other.config.optimizer.mu_dtype else 1.0
            rows = other.config.batch / other.config.loop.microbatches
            return state * (0.5 + 0.5 * moment) + REMAT[other.decoder.remat] * rows / 8

        def compile_step(other, target):
            if needed(other) > target.chip.hbm_gib:
                raise DoesNotFit(needed(other), target.chip.hbm_gib)
            memory = SimpleNamespace(peak_memory_in_bytes=needed(other) * 2**30)
            return SimpleNamespace(compiled=SimpleNamespace(memory_analysis=lambda: memory))

        monkeypatch.setattr(search, "compile_step", compile_step)
        monkeypatch.setattr(search, "batch_parts", lambda sharding, target: 2)
        monkeypatch.setattr(search, "state_gib", lambda job, target: state)
        return DoesNotFit(needed(job()), TARGET.chip.hbm_gib)

    return install


@pytest.mark.parametrize(
    ("state", "answer"),
    [
        (60.0, "it fits with remat full: 80.00 of 95.74 GiB"),
        (85.0, "it fits with remat full, 4 microbatches: 90.00 of 95.74 GiB"),
        (110.0, "it fits with remat full, 4 microbatches, first moment in bfloat16: 87.50 of 95.74 GiB"),
        (200.0, "about .* times the chips would do"),
    ],
)
def test_what_would_fit(compiler, state, answer):
    said = []
    error = compiler(state)
    import re

    assert re.search(answer, search.what_would_fit(job(), TARGET, error, said.append))
    assert said[0] == "trying remat full ..."


def test_a_grid_keeps_to_what_divides():
    config = job(batch=6)
    jobs = search.grid(config, ["full", "none"], [1, 2, 4], [config.sharding])
    assert [(j.decoder.remat, j.config.loop.microbatches) for j in jobs] == [
        ("full", 1), ("none", 1), ("full", 2), ("none", 2),
    ]  # fmt: skip
    assert all(dataclasses.replace(j.decoder, remat="none") == config.decoder for j in jobs)


def test_the_front_holds_what_nothing_beats():
    plans = [
        {"peak_hbm_gib": gib, "predicted_mfu": mfu}
        for gib, mfu in [(90, 0.6), (20, 0.4), (50, 0.55), (60, 0.5), (20, 0.3)]
    ]
    assert [(p["peak_hbm_gib"], p["predicted_mfu"]) for p in search.front(plans)] == [(20, 0.4), (50, 0.55), (90, 0.6)]


def test_a_search_goes_on_where_something_does_not_fit(compiler, monkeypatch):
    compiler(60.0)
    figures = {"full": 0.4, "save_qkvo": 0.5, "none": 0.6}
    monkeypatch.setattr(
        search,
        "report",
        lambda other, target, program, budget: {"peak_hbm_gib": 1.0, "predicted_mfu": figures[other.decoder.remat]},
    )
    said = []
    jobs = search.grid(job(), ["full", "save_qkvo", "none"], [1], [job().sharding])
    plans = search.search(jobs, TARGET, 0.0, said.append)
    assert [p["predicted_mfu"] for p in plans] == [0.4]
    assert "MFU 40.0%" in said[0] and "needs 140.00 GiB" in said[1] and "remat none" in said[2]
