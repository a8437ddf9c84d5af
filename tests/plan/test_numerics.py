"""The gate for XLA options: equal figures pass, others are refused by name."""

import dataclasses

import jax
import pytest

from aqaa_jax.config import DecoderConfig, MeshConfig, ShardingConfig, VocabConfig
from aqaa_jax.plan import numerics
from aqaa_jax.plan.compile import Job
from aqaa_jax.training.config import LoopConfig, OptimizerConfig, StageConfig

DECODER = DecoderConfig(
    vocab=256, embed=32, mlp=64, heads=4, kv_heads=2, head_dim=8, layers=1, dtype="float32", param_dtype="float32"
)
JOB = Job(
    DECODER,
    VocabConfig(size=256, audio_start=64, linguistic=64, semantic=128),
    StageConfig(
        LoopConfig(sharding=ShardingConfig(MeshConfig(data=2), "data")),
        OptimizerConfig(warmup_steps=1),
        batch=4,
        length=16,
    ),
)


@pytest.fixture(scope="module")
def plain():
    return numerics.figures(JOB, jax.devices()[:2])


@pytest.mark.long
def test_the_steps_are_steps_and_always_the_same(plain):
    assert len(plain) == numerics.STEPS and plain[2]["loss"] < plain[0]["loss"]
    assert numerics.check(JOB, {}, jax.devices()[:2]) == (plain, plain)


@pytest.mark.long
def test_a_program_that_computes_something_else_is_refused(plain):
    other = dataclasses.replace(JOB, decoder=dataclasses.replace(DECODER, norm_eps=0.1))  # stands in for bad options
    reason = numerics.differing(plain, numerics.figures(other, jax.devices()[:2]))
    assert reason.startswith("step 1, ") and "at most" in reason


def test_differences_within_tolerance_pass_and_nan_does_not():
    plain = [{"loss": 2.0, "grad_norm": 1.0}]
    assert numerics.differing(plain, [{"loss": 2.001, "grad_norm": 1.009}]) == ""
    assert "grad_norm 1 without, 1.02 with" in numerics.differing(plain, [{"loss": 2.0, "grad_norm": 1.02}])
    assert "loss" in numerics.differing(plain, [{"loss": float("nan"), "grad_norm": 1.0}])
