"""Rows split over devices: the same numbers as on one, and the same work on each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import DecoderConfig, MeshConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.kernels.context import zigzag_back, zigzag_order
from aqaa_jax.kernels.places import visible_blocks
from aqaa_jax.sharding.mesh import make_mesh
from aqaa_jax.sharding.partition import partitioning, shard
from aqaa_jax.sharding.rules import strategy
from tests.kernels.cases import rows_of

CONFIG = DecoderConfig(
    vocab=32, embed=8, mlp=16, heads=4, kv_heads=2, head_dim=4, layers=2, dtype="float32", param_dtype="float32"
)
TOKENS = jax.random.randint(jax.random.key(1), (2, 16), 0, CONFIG.vocab)
SEGMENTS = jnp.asarray([[1] * 16, [1] * 5 + [2] * 9 + [0] * 2])


def loss(model, tokens, segments):
    logits = model(tokens, segment_ids_BL=segments)
    return jnp.mean(jnp.square(jax.nn.logsumexp(logits, axis=-1)) * (segments > 0)), logits


@pytest.fixture(scope="module")
def single():
    model = Decoder(dataclasses.replace(CONFIG, attention="reference"), rngs=nnx.Rngs(0))
    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(model, TOKENS, SEGMENTS)
    return model, value, logits, named_weights(grads)


@pytest.mark.parametrize(
    ("attention", "mesh"),
    [
        ("blocked", MeshConfig(context=4)),
        ("blocked", MeshConfig(data=2, context=2, tensor=2)),
        ("reference", MeshConfig(context=2, tensor=2)),
        ("flash", MeshConfig(context=2, tensor=2)),
    ],
    ids=str,
)
def test_decoder_equals_one_device(single, attention, mesh):
    model, value, logits, grads = single
    model = jax.tree.map(lambda w: w, model)
    model.config = dataclasses.replace(CONFIG, attention=attention)
    mesh, rules = make_mesh(mesh), strategy("fsdp_tensor_context")
    with partitioning(mesh, rules):
        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value_here, logits_here), grads_here = step(shard(model, mesh, rules), TOKENS, SEGMENTS)
    np.testing.assert_allclose(value_here, value, rtol=1e-6)
    real = np.asarray(SEGMENTS) > 0
    np.testing.assert_allclose(np.asarray(logits_here)[real], np.asarray(logits)[real], atol=1e-6, rtol=1e-5)
    for weight, grad in named_weights(grads_here).items():
        np.testing.assert_allclose(grad, grads[weight], atol=1e-6, rtol=1e-4, err_msg=weight)


@pytest.mark.parametrize("n", [2, 4])
def test_zigzag_gives_equal_work_and_comes_back(n):
    with partitioning(make_mesh(MeshConfig(context=n)), strategy("context")):
        order = zigzag_order(16 * n)
        x = jax.random.normal(jax.random.key(0), (1, 16 * n, 3))
        np.testing.assert_array_equal(jax.jit(zigzag_back)(x[:, order]), x)
        assert zigzag_order(17 * n) is None  # an odd number of tokens for a device stays as it is
    places = rows_of(jnp.ones((1, 16 * n), jnp.int32))
    here = tuple(x[:, order] if i % 2 == 0 else x for i, x in enumerate(places))
    work = np.asarray(visible_blocks(here, 8, 8)).reshape(n, -1).sum(1)
    assert (work == work[0]).all() and work[0] == (2 * n + 1)
    assert zigzag_order(15) is None  # outside of a mesh
