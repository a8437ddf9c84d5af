"""The gradient by hand: the numbers of one device, one addition over devices a step."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import DecoderConfig, MeshConfig, VocabConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.sharding.mesh import make_mesh
from aqaa_jax.sharding.partition import partitioning, shard
from aqaa_jax.sharding.rules import strategy
from aqaa_jax.training.config import OptimizerConfig
from aqaa_jax.training.optimizer import make_optimizer
from aqaa_jax.training.stages.language import LanguageStage
from aqaa_jax.training.state import init_state
from aqaa_jax.training.step import make_train_step

DECODER = DecoderConfig(
    vocab=48, embed=16, mlp=24, heads=4, kv_heads=2, head_dim=4, layers=2, dtype="float32", param_dtype="float32"
)
STAGE = LanguageStage("sft", DECODER, VocabConfig(48, 24, 8, 16), lambda step: None, head_chunk=4)
OPTIMIZER = make_optimizer(OptimizerConfig(peak_lr=1e-2, warmup_steps=0), 10)
KEY = jax.random.key(0)


def batch(rows=16, length=8):
    keys = jax.random.split(jax.random.key(1), 4)
    lengths = jax.random.randint(keys[0], (rows, 1), 2, length + 1)
    return {
        "tokens": jax.random.randint(keys[1], (rows, length), 0, 48),
        "segment_ids": (jnp.arange(length) < lengths).astype(jnp.int32),
        "source": jnp.broadcast_to(jnp.arange(length), (rows, length)),
        "targets": jax.random.randint(keys[2], (rows, length), 0, 48),
        "loss_mask": ((jnp.arange(length) < lengths) & (jax.random.uniform(keys[3], (rows, length)) < 0.7)) * 1.0,
    }


def fresh():
    return init_state(Decoder(DECODER, rngs=nnx.Rngs(0)), OPTIMIZER, ema=False)


@pytest.fixture(scope="module")
def whole():
    return make_train_step(STAGE.loss, STAGE.weights, OPTIMIZER)(fresh(), batch(), KEY)


def step_on(mesh_config, table, *, microbatches=1, by_rows=True):
    mesh, rules = make_mesh(MeshConfig(**mesh_config)), strategy(table)
    step = make_train_step(STAGE.loss, STAGE.weights, OPTIMIZER, microbatches=microbatches, by_rows=by_rows)
    with partitioning(mesh, rules):
        state = fresh()
        state = state._replace(model=shard(state.model, mesh, rules))
        compiled = step.lower(state, batch(), KEY).compile()
        return compiled(state, batch(), KEY), compiled.as_text()


def check(result, whole):
    (state, metrics), (expected_state, expected) = result, whole
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    theirs = named_weights(expected_state.model)
    for name, value in named_weights(state.model).items():
        np.testing.assert_allclose(value, theirs[name], atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    "mesh, table",
    [
        pytest.param({"data": 8}, "data", marks=pytest.mark.long),
        ({"fsdp": 8}, "fsdp"),
        pytest.param({"data": 2, "fsdp": 4}, "hsdp", marks=pytest.mark.long),
        ({"data": 2, "fsdp": 2, "tensor": 2}, "fsdp_tensor_sequence"),
        pytest.param({"fsdp": 4, "tensor": 2}, "fsdp_tensor", marks=pytest.mark.long),
        pytest.param({"fsdp": 4, "context": 2}, "fsdp_context", marks=pytest.mark.long),
    ],
    ids=str,
)
def test_by_rows_is_the_step_of_one_device(whole, mesh, table):
    check(step_on(mesh, table)[0], whole)


def reductions(text):
    """Bytes added up over devices, of whole tensors, in loops and outside of them."""
    inside, outside = [], []
    loops = set(re.findall(r"body=%?([\w.\-]+)", text))
    name = ""
    for line in text.splitlines():
        if start := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{", line):
            name = start[1]
        if re.search(r"\b(all-reduce|reduce-scatter)(-start)?\(", line):
            shapes = re.findall(r"f32\[([\d,]*)\]", line.split("all-reduce(")[0].split("reduce-scatter(")[0])
            size = sum(int(np.prod([int(d) for d in s.split(",") if d])) for s in shapes)
            (inside if name in loops else outside).append(size)
    return inside, outside


def test_parts_of_a_batch_are_the_batch_with_one_addition_over_devices(whole):
    weights = sum(x.size for x in jax.tree.leaves(fresh().model))
    for microbatches in (1, 2):
        result, text = step_on({"data": 8}, "data", microbatches=microbatches)
        check(result, whole)
        inside, outside = reductions(text)
        assert [size for size in inside if size > 64] == []
        assert weights <= sum(outside) < 1.1 * weights
    inside, _ = reductions(step_on({"data": 8}, "data", microbatches=2, by_rows=False)[1])
    assert max(inside) > 64  # what the compiler does by itself


def test_split_weights_are_added_up_in_the_loop_only_over_their_pieces(whole):
    result, text = step_on({"data": 2, "fsdp": 4}, "hsdp", microbatches=2)
    check(result, whole)
    groups = {
        line.split("replica_groups=")[1].split(", ")[0] for line in text.splitlines() if "reduce-scatter(" in line
    }
    assert groups == {"[2,4]<=[8]"} or groups == {"{{0,1,2,3},{4,5,6,7}}"}


def gathers(text, *groups):
    """Shapes of what is gathered over ``groups`` of devices, written in either way."""
    lines = [line for line in text.splitlines() if re.search(r" all-gather(-start)?\(", line)]
    lines = [line for line in lines if line.split("replica_groups=")[1].split(", ")[0] in groups]
    return {shape for line in lines for shape in re.findall(r"f32\[([\d,]+)\]", line.split(" all-gather")[0])}


def test_a_weight_is_gathered_over_fsdp_and_stays_split_over_tensor():
    _, text = step_on({"data": 2, "fsdp": 2, "tensor": 2}, "fsdp_tensor_sequence")
    over_fsdp = gathers(text, "{{0,2},{1,3},{4,6},{5,7}}", "[4,2]<=[2,2,2]T(0,2,1)")
    over_tensor = gathers(text, "{{0,1},{2,3},{4,5},{6,7}}", "[4,2]<=[8]")
    assert {"16,12", "24,16"} <= over_fsdp, over_fsdp  # half of an MLP matrix, 16 x 24, and of the embedding, 48 x 16
    assert not (over_fsdp | over_tensor) & {"48,16", "16,48"}, (over_fsdp, over_tensor)
    assert not over_tensor & {"16,24", "24,16"}, over_tensor


def test_rows_must_divide():
    step = make_train_step(STAGE.loss, STAGE.weights, OPTIMIZER, microbatches=3)
    with pytest.raises(ValueError, match="16 rows do not divide into 3 microbatches"):
        step(fresh(), batch(), KEY)
    with pytest.raises(ValueError, match="microbatches is 0"):
        make_train_step(STAGE.loss, STAGE.weights, OPTIMIZER, microbatches=0)
    by_rows = make_train_step(STAGE.loss, STAGE.weights, OPTIMIZER, by_rows=True)
    with (
        pytest.raises(ValueError, match="size 12 does not split evenly over 8"),
        partitioning(make_mesh(MeshConfig(data=8)), strategy("data")),
    ):
        by_rows(fresh(), batch(12), KEY)
