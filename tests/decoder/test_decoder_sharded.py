"""The decoder on a mesh decodes with a cache and is born in pieces; values and gradients are in ``tests/sharding``."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import DecoderConfig, MeshConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.sharding.mesh import make_mesh
from aqaa_jax.sharding.partition import init_sharded, partitioning, shard
from aqaa_jax.sharding.rules import STRATEGIES

CONFIG = DecoderConfig(
    vocab=32, embed=8, mlp=16, heads=4, kv_heads=2, head_dim=4, layers=2, dtype="float32", param_dtype="float32"
)
TOKENS = jax.random.randint(jax.random.key(1), (4, 6), 0, CONFIG.vocab)


def build():
    return Decoder(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def single():
    model = build()
    return model, jax.jit(lambda model, tokens: model(tokens))(model, TOKENS)


@pytest.mark.parametrize(
    ("sizes", "strategy", "rows"),
    [
        (MeshConfig(fsdp=2, tensor=2), "fsdp_tensor", 2),
        (MeshConfig(data=2, tensor=2), "stationary", 2),
        (MeshConfig(fsdp=2, tensor=2), "stationary", 4),
        (MeshConfig(data=2, fsdp=2, tensor=2), "stationary", 2),
    ],
)
@pytest.mark.parametrize("attention", ["reference", "flash"])
def test_cached_decoding_on_a_mesh(single, sizes, strategy, rows, attention):
    model, logits = single
    mesh, rules = make_mesh(sizes), STRATEGIES[strategy]
    model = jax.tree.map(lambda x: x, model)
    model.config = dataclasses.replace(CONFIG, attention=attention)

    def two_steps(model, tokens):
        first, cache = model(tokens[:, :5], cache=model.empty_cache(4, 8))
        second, cache = model(tokens[:, 5:], cache=cache)  # one token: the kernel, with "flash"
        return jnp.concatenate([first, second], axis=1), cache

    with partitioning(mesh, rules):
        out, cache = jax.jit(two_steps)(shard(model, mesh, rules), TOKENS)
    np.testing.assert_allclose(out, logits, atol=1e-6, rtol=1e-5)
    assert cache.k.sharding.shard_shape(cache.k.shape) == (2, rows, 1, 8, 4)


def test_no_weight_travels_where_all_stay():
    """Of a decoding step only activations go over the links: the largest array that is gathered is the logits."""
    B = 4
    mesh, rules = make_mesh(MeshConfig(data=2, tensor=2)), STRATEGIES["stationary"]
    wide = Decoder(dataclasses.replace(CONFIG, embed=64, mlp=256, vocab=512), rngs=nnx.Rngs(0))
    with partitioning(mesh, rules):
        cache = wide.empty_cache(B, 8)
        step = jax.jit(lambda model, token_B, cache: model(token_B[:, None], cache=cache))
        text = step.lower(shard(wide, mesh, rules), jnp.zeros((B,), jnp.int32), cache).compile().as_text()
    sizes = [[int(d) for d in dims.split(",")] for dims in re.findall(r"f32\[([\d,]+)\]\S* all-gather\(", text)]
    assert text.count("all-reduce(") and all(math.prod(size) <= B * 512 for size in sizes)


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
