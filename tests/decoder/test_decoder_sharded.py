"""The decoder on a mesh computes what it computes on one device, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import DecoderConfig, MeshConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.sharding.mesh import make_mesh, parse_mesh
from aqaa_jax.sharding.partition import init_sharded, partitioning, shard
from aqaa_jax.sharding.rules import STRATEGIES

CONFIG = DecoderConfig(
    vocab=32, embed=8, mlp=16, heads=4, kv_heads=2, head_dim=4, layers=2, dtype="float32", param_dtype="float32"
)
TOKENS = jax.random.randint(jax.random.key(1), (4, 6), 0, CONFIG.vocab)
SEGMENTS = jnp.asarray([[1] * 6, [1] * 3 + [2] * 3, [1] * 4 + [0] * 2, [1] * 6])


def loss(model, tokens, segments):
    logits = model(tokens, segment_ids_BL=segments)
    return jnp.mean(jnp.square(jax.nn.logsumexp(logits, axis=-1)) * (segments > 0)), logits


def build():
    return Decoder(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def single():
    model = build()
    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(model, TOKENS, SEGMENTS)
    return model, value, logits, named_weights(grads)


@pytest.mark.parametrize("sizes", ["fsdp=2,tensor=2", "data=2,fsdp=2,tensor=2"])
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_forward_and_gradient(single, sizes, name):
    model, value, logits, grads = single
    mesh, rules = make_mesh(parse_mesh(sizes)), STRATEGIES[name]

    # A new function for every mesh: constraints are part of the trace, but not of jit's cache key.
    def loss_here(model, tokens, segments):
        return loss(model, tokens, segments)

    with partitioning(mesh, rules):
        placed = shard(model, mesh, rules)
        step = jax.jit(jax.value_and_grad(loss_here, has_aux=True))
        (value_here, logits_here), grads_here = step(placed, TOKENS, SEGMENTS)
    np.testing.assert_allclose(value_here, value, rtol=1e-6)
    np.testing.assert_allclose(logits_here, logits, atol=1e-6, rtol=1e-5)
    for weight, grad in named_weights(grads_here).items():
        np.testing.assert_allclose(grad, grads[weight], atol=1e-6, rtol=1e-4, err_msg=weight)


def test_cached_decoding_on_a_mesh(single):
    model, _, logits, _ = single
    mesh, rules = make_mesh(MeshConfig(fsdp=2, tensor=2)), STRATEGIES["fsdp_tensor"]

    def two_steps(model, tokens):
        first, cache = model(tokens[:, :4], cache=model.empty_cache(4, 8))
        second, cache = model(tokens[:, 4:], cache=cache)
        return jnp.concatenate([first, second], axis=1), cache

    with partitioning(mesh, rules):
        out, cache = jax.jit(two_steps)(shard(model, mesh, rules), TOKENS)
    np.testing.assert_allclose(out[0], logits[0], atol=1e-6, rtol=1e-5)
    assert cache.k.sharding.shard_shape(cache.k.shape) == (2, 2, 1, 8, 4)


def test_born_sharded(single):
    mesh, rules = make_mesh(MeshConfig(fsdp=2, tensor=2)), STRATEGIES["fsdp_tensor"]
    born = init_sharded(build, mesh, rules)
    wq = born.blocks.attention.wq.get_value()
    assert wq.sharding.shard_shape(wq.shape) == (2, 4, 2, 4)
    for name, value in named_weights(born).items():
        np.testing.assert_allclose(value, named_weights(single[0])[name], atol=1e-6, err_msg=name)


def test_an_uneven_split_is_an_error():
    mesh, rules = make_mesh(MeshConfig(tensor=4)), STRATEGIES["tensor"]
    with pytest.raises(ValueError, match="kv_heads"):
        shard(build(), mesh, rules)
