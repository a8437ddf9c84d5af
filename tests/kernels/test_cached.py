"""The decoder with the flash kernels decodes over its cache as it does with the reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aqaa_jax.config import DecoderConfig, MeshConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.sharding.mesh import make_mesh
from aqaa_jax.sharding.partition import partitioning, shard
from aqaa_jax.sharding.rules import strategy

CONFIG = DecoderConfig(
    vocab=32, embed=8, mlp=16, heads=4, kv_heads=2, head_dim=4, layers=2, dtype="float32", param_dtype="float32"
)
TOKENS = jax.random.randint(jax.random.key(1), (4, 9), 0, CONFIG.vocab)
LENGTHS = jnp.asarray([5, 2, 4, 1])


def decode(model):
    """Logits of a padded prompt's last tokens and of three more tokens; the third row stops after the first."""
    real = (jnp.arange(5) < LENGTHS[:, None]).astype(jnp.int32)
    logits, cache = model(TOKENS[:, :5], segment_ids_BL=real, cache=model.empty_cache(4, 9))
    out = [jnp.take_along_axis(logits, LENGTHS[:, None, None] - 1, axis=1)]
    for step in range(3):
        live = jnp.ones((4, 1), jnp.int32).at[2].set(step == 0)
        logits, cache = model(TOKENS[:, 5 + step, None], segment_ids_BL=live, cache=cache)
        out.append(logits * live[:, :, None])
    return jnp.concatenate(out, axis=1), cache


def test_flash_decodes_as_the_reference_on_one_device_and_on_a_mesh(as_for_users):
    model = Decoder(dataclasses.replace(CONFIG, attention="reference"), rngs=nnx.Rngs(0))
    expected, cache = jax.jit(decode)(model)
    model.config = dataclasses.replace(CONFIG, attention="flash")
    mesh, rules = make_mesh(MeshConfig(data=2, tensor=2)), strategy("tensor")
    with partitioning(mesh, rules):
        there = jax.jit(decode)(shard(model, mesh, rules))
    for out, after in (jax.jit(decode)(model), there):
        np.testing.assert_allclose(out, expected, atol=1e-6, rtol=1e-5)
        np.testing.assert_array_equal(after.length_B, cache.length_B)
        for ours, theirs in ((after.k, cache.k), (after.v, cache.v)):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
