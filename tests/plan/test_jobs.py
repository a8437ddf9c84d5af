"""What is planned: stages, batches and sizes, without compiling anything."""

import dataclasses

import jax
import numpy as np
import pytest

from aqaa_jax.config import DecoderConfig, ExpertsConfig, MeshConfig, ShardingConfig, VocabConfig
from aqaa_jax.plan import batches
from aqaa_jax.plan.compile import STAGES, Job, batch_parts, parts_of, stage_of
from aqaa_jax.plan.report import model_flops, parameters
from aqaa_jax.sharding import partition
from aqaa_jax.sharding.mesh import make_mesh
from aqaa_jax.sharding.rules import rules_of
from aqaa_jax.training.config import LoopConfig, StageConfig

DECODER = DecoderConfig(vocab=512, embed=32, mlp=64, heads=4, kv_heads=2, head_dim=8, layers=3, param_dtype="float32")
VOCAB = VocabConfig(size=512, audio_start=384, linguistic=32, semantic=96)
SHARDING = ShardingConfig(MeshConfig(data=2, fsdp=2, tensor=2), "fsdp_tensor")
JOB = Job(DECODER, VOCAB, StageConfig(LoopConfig(sharding=SHARDING), batch=8, length=16))


@pytest.mark.parametrize("stage", STAGES)
def test_the_step_of_every_stage_takes_the_planned_batch(stage):
    job = dataclasses.replace(JOB, stage=stage)
    mesh, table = make_mesh(SHARDING.mesh, jax.devices()), rules_of(SHARDING)
    with jax.set_mesh(mesh), partition.partitioning(mesh, table):
        init, step, _ = parts_of(job, mesh, table)
        batch = batches.abstract(stage, 8, 16, mesh, table)
        state, metrics = jax.eval_shape(step, jax.eval_shape(init, jax.random.key(0)), batch, jax.random.key(0))
    assert int(np.prod(batch["tokens"].sharding.shard_shape((8, 16)))) == 2 * 16
    assert set(stage_of(job).weights) <= set(metrics) and state.model.head.get_value().shape == (32, 512)


def test_a_seeded_batch_has_the_planned_shapes():
    for stage in STAGES:
        batch, shapes = batches.seeded(stage, 4, 6, 512), batches.shapes(stage, 4, 6)
        assert {name: (x.shape, x.dtype.type) for name, x in batch.items()} == shapes
    np.testing.assert_array_equal(batch["answer"][0], [1, 1, 1, 2, 2, 2])  # of the last stage, dpo
    np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])


def test_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="stage is 'hift'; expected one of pretrain, sft1, sft2, dpo"):
        stage_of(dataclasses.replace(JOB, stage="hift"))


def test_parts_of_a_batch():
    assert batch_parts(SHARDING, jax.devices()) == 4
    assert batch_parts(ShardingConfig(MeshConfig(tensor=8), "tensor"), jax.devices()) == 1


def test_parameters_of_the_published_decoder():
    total, active = parameters(DecoderConfig())
    layer = 2 * 12288 * 12288 + 2 * 12288 * 1024 + 3 * 12288 * 31232 + 2 * 12288
    assert total == 88 * layer + 12288 + 2 * 74752 * 12288 and total - active == 74752 * 12288
    # The figure of the field's table: 6 N and half of the square of attention, 4 Mi tokens.
    assert model_flops(DecoderConfig(), 1024, 4096) / (1024 * 459e12) == pytest.approx(7.253, abs=0.001)


def test_of_the_experts_those_that_a_token_meets():
    dense, _ = parameters(DECODER)
    experts = ExpertsConfig(experts=8, top_k=2, mlp=16, shared_mlp=0)
    total, active = parameters(dataclasses.replace(DECODER, experts=experts))
    without = dense - 3 * 3 * 32 * 64  # the dense layers
    assert total == without + 3 * (8 * 3 * 32 * 16 + 32 * 8)
    assert active == without - 512 * 32 + 3 * (2 * 3 * 32 * 16 + 32 * 8)
