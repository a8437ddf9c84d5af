"""Experts on a mesh compute what they compute on one device, forward and backward: over each axis and over pairs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import DecoderConfig, ExpertsConfig, MeshConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.sharding.mesh import make_mesh
from aqaa_jax.sharding.partition import partitioning, shard
from aqaa_jax.sharding.rules import STRATEGIES

CONFIG = DecoderConfig(
    vocab=32,
    embed=8,
    heads=4,
    kv_heads=2,
    head_dim=4,
    layers=2,
    dtype="float32",
    param_dtype="float32",
    experts=ExpertsConfig(experts=8, top_k=3, mlp=16, shared_mlp=8, bias_rate=0.01),
)
TOKENS = jax.random.randint(jax.random.key(1), (8, 6), 0, CONFIG.vocab)
SEGMENTS = jnp.asarray([[1] * 6, [1] * 3 + [2] * 3, [1] * 4 + [0] * 2, [1] * 6] * 2)
MESHES = [  # the axis alone, pairs with it, three, and the others without it
    ("expert", {"expert": 8}),
    ("expert", {"data": 2, "expert": 4}),
    ("expert_fsdp", {"fsdp": 4, "expert": 2}),
    ("expert_fsdp_tensor", {"expert": 4, "tensor": 2}),
    ("fsdp_whole_experts", {"fsdp": 4, "expert": 2}),
]
MORE_MESHES = [
    ("expert", {"expert": 2, "context": 2}),
    ("expert_fsdp_tensor", {"fsdp": 2, "expert": 2, "tensor": 2}),
    ("data", {"data": 2, "expert": 2}),  # rows over the axis, experts not
    ("fsdp", {"fsdp": 8}),
    ("fsdp_tensor", {"fsdp": 4, "tensor": 2}),
    ("tensor_sequence", {"data": 2, "tensor": 2}),
]
CASES = MESHES + [pytest.param(*mesh, marks=pytest.mark.long) for mesh in MORE_MESHES]


def loss(model, tokens, segments):
    """A loss that every part of the statistics has a part in."""
    hidden_BLD, stats = model.hidden(tokens, segment_ids_BL=segments, with_aux=True)
    logits = model.logits(hidden_BLD)
    value = jnp.mean(jnp.square(jax.nn.logsumexp(logits, axis=-1)) * (segments > 0))
    return value + 0.01 * jnp.sum(stats.z) + 0.1 * jnp.sum(stats.probability_E * stats.load_E), (logits, stats)


@pytest.fixture(scope="module")
def single():
    model = jax.tree.map(lambda w: 2 * w, Decoder(CONFIG, rngs=nnx.Rngs(0)))
    (value, (logits, stats)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(model, TOKENS, SEGMENTS)
    return model, value, logits, stats, named_weights(grads)


@pytest.mark.parametrize(("strategy", "sizes"), CASES, ids=str)
def test_forward_and_gradient(single, strategy, sizes):
    model, value, logits, stats, grads = single
    mesh, rules = make_mesh(MeshConfig(**sizes)), STRATEGIES[strategy]
    with partitioning(mesh, rules):
        placed = shard(model, mesh, rules)
        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value_here, (logits_here, stats_here)), grads_here = step(placed, TOKENS, SEGMENTS)
    np.testing.assert_allclose(value_here, value, rtol=1e-6)
    np.testing.assert_allclose(logits_here, logits, atol=2e-6, rtol=1e-5)
    for name, figure in stats._asdict().items():
        np.testing.assert_allclose(getattr(stats_here, name), figure, rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(stats_here.dropped, 0)
    for name, grad in named_weights(grads_here).items():
        np.testing.assert_allclose(grad, grads[name], atol=2e-5, rtol=1e-4, err_msg=name)


def test_experts_are_split_and_answer_a_token_wherever_it_is(single):
    """Every token of the batch to one expert: one device of eight gets all rows, and none is dropped."""
    model = jax.tree.map(lambda w: w, single[0])
    model.config = dataclasses.replace(CONFIG, experts=dataclasses.replace(CONFIG.experts, top_k=1))
    model.blocks.mlp.config = model.config.experts
    model.blocks.mlp.bias.set_value(model.blocks.mlp.bias[...].at[:, 5].set(100.0))
    run = jax.jit(lambda m, t: m.hidden(t, with_aux=True))
    expected, stats = run(model, TOKENS)
    np.testing.assert_array_equal(stats.load_E[:, 5], 48)
    mesh, rules = make_mesh(MeshConfig(expert=8)), STRATEGIES["expert"]
    with partitioning(mesh, rules):
        placed = shard(model, mesh, rules)
        gate = placed.blocks.mlp.gate.get_value()
        assert gate.sharding.shard_shape(gate.shape) == (2, 1, 8, 16)
        hidden, stats = run(placed, TOKENS)
    np.testing.assert_allclose(hidden, expected, atol=2e-6, rtol=1e-5)
    np.testing.assert_array_equal(stats.dropped, 0)
