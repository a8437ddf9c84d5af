"""The real TPU compiler takes the kernels, and what it makes of them holds neither an S x S array nor a copied cache.

Needs libtpu of the version that jax asks for (``pip install libtpu==0.0.42.1``), not a TPU; skipped without.
"""

import importlib.util
import math
import os
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding, PartitionSpec

from aqaa_jax.config import DecoderConfig, MeshConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.kernels.accumulate import Piece, add_product, halves
from aqaa_jax.kernels.flash import flash_attention
from aqaa_jax.nn.kv_cache import KVCache
from aqaa_jax.sharding.mesh import make_mesh
from aqaa_jax.sharding.partition import partitioning, shardings
from aqaa_jax.sharding.rules import strategy

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
CHIPS = {"v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "v5e": "v5e:2x2", "tpu7x": "tpu7x:2x2x1", "v4": "v4:2x2x1"}
GIB = 2**30


def devices(topology):
    from jax.experimental import topologies

    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # else a second libtpu on this machine aborts
    return topologies.get_topology_desc(topology, platform="tpu").devices


def compiled(chip, L, N, K, H, *, backward):
    """Flash attention of one row on one device of ``chip``, arguments laid out as the compiler likes: in the model
    they are results of products, which it writes in any order of axes."""
    mesh = make_mesh(MeshConfig(), devices(CHIPS[chip])[:1])

    def loss(q, k, v, *rest):
        return jnp.sum(flash_attention(q, k, v, *rest).astype(jnp.float32))

    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    q, k, row = shape(1, L, N, H), shape(1, L, K, H), shape(1, L, dtype=jnp.int32)
    with partitioning(mesh, strategy("replicated")), jax.set_mesh(mesh):
        free = Format(Layout.AUTO, NamedSharding(mesh, PartitionSpec()))
        run = jax.jit(jax.grad(loss, (0, 1, 2)) if backward else flash_attention, in_shardings=free, out_shardings=free)
        return run.lower(q, k, k, shape(N, dtype=jnp.float32), *[row] * 4).compile()


def largest(text):
    """Elements of the largest array of a program."""
    shapes = re.findall(r"\b(?:pred|[subf]+\d+)\[([\d,]+)\]", text)
    return max(math.prod(int(n) for n in shape.split(",")) for shape in set(shapes))


def test_small_heads_compile():
    compiled("v6e", 500, 2, 1, 32, backward=True)


@pytest.mark.long
@pytest.mark.parametrize("chip", CHIPS)
def test_forward_and_backward_compile(chip):
    """24 heads in 2 groups of size 128: a chip's part of the large model under tensor parallelism of 4."""
    program = compiled(chip, 4096, 24, 2, 128, backward=True)
    assert program.as_text().count("tpu_custom_call") >= 3


@pytest.mark.long
@pytest.mark.parametrize(("N", "K", "H"), [(4, 4, 64), (12, 1, 64), (12, 1, 128)])
def test_other_heads_compile(N, K, H):
    compiled("v6e", 1000, N, K, H, backward=True)


@pytest.mark.long
@pytest.mark.parametrize(("L", "limit"), [(8192, 0.175), (32768, 0.7)])
def test_memory_of_long_rows(L, limit):
    program = compiled("v5p", L, 24, 2, 128, backward=True)
    peak = program.memory_analysis().peak_memory_in_bytes / GIB
    assert peak <= limit
    assert largest(program.as_text()) == L * 24 * 128  # the queries


@pytest.mark.parametrize("chip", ["v5p", "v6e", "v5e", "tpu7x"])
@pytest.mark.parametrize("tokens", [4096, 12288])
def test_a_gradient_is_added_up_in_place(chip, tokens):
    mesh, (column, wide) = make_mesh(MeshConfig(), devices(CHIPS[chip])[:1]), halves(31232)[0]

    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    def step(total, x, g, row):
        return add_product(x, g, Piece(row, 768, column, wide), total)

    given = shape(768, wide), shape(tokens, 12288), shape(tokens, 31232), shape(dtype=jnp.int32)
    with partitioning(mesh, strategy("replicated")), jax.set_mesh(mesh):
        memory = jax.jit(step, donate_argnums=0).lower(*given).compile().memory_analysis()
    assert memory.alias_size_in_bytes == 2 * 768 * wide
    assert memory.temp_size_in_bytes < 2**20


@pytest.mark.long
def test_decode_reads_the_cache_in_place():
    """All 88 layers of the 130B on 8 v5p chips, 64 rows of 8,192: nothing large is copied."""
    mesh, rules = make_mesh(MeshConfig(tensor=8), devices("v5p:2x2x2")), strategy("tensor")
    c, B, S = DecoderConfig(), 64, 8192

    def step(model, tokens_BL, cache):
        logits_BLV, cache = model(tokens_BL, cache=cache)
        return jnp.argmax(logits_BLV[:, -1], axis=-1), cache

    def place(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    with partitioning(mesh, rules), jax.set_mesh(mesh):
        model = jax.eval_shape(lambda: Decoder(c, rngs=nnx.Rngs(0)))
        model = jax.tree.map(place, model, shardings(model, mesh, rules))
        whole = NamedSharding(mesh, PartitionSpec())
        stored = NamedSharding(mesh, PartitionSpec(None, None, "tensor"))
        k = jax.ShapeDtypeStruct((c.layers, B, c.kv_heads, S, c.head_dim), jnp.bfloat16, sharding=stored)
        rows = [jax.ShapeDtypeStruct(shape, jnp.int32, sharding=whole) for shape in ((B, 1), (B,))]
        program = jax.jit(step, donate_argnums=2).lower(model, rows[0], KVCache(k, k, rows[1])).compile()
    cache = 2 * math.prod(k.shape) * 2 / 8
    weights = sum(math.prod(x.sharding.shard_shape(x.shape)) * 2 for x in jax.tree.leaves(model))
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes <= 0.01 * cache
    moved = weights + cache + c.layers * written_in_loop(program.as_text())
    assert moved <= 1.1 * (weights + cache)


def written_in_loop(text):
    """Bytes that one turn of the loop over layers writes to HBM and reads again, beside weights and cache."""
    bodies, total, inside = set(re.findall(r"\bbody=%?([\w.-]+)", text)), 0, False
    for line in text.splitlines():
        if line and not line.startswith(" "):
            inside = line.split(" ")[0].lstrip("%") in bodies
        found = re.match(r"\s*(?:ROOT )?%?[\w.-]+ = \(?(\w+)\[([\d,]*)\](\{[^}]*\})?.*? ([\w-]+)\(", line)
        if inside and found and found[4] not in {"parameter", "get-tuple-element", "bitcast", "tuple", "custom-call"}:
            size = {"bf16": 2, "pred": 1}.get(found[1], 4) * math.prod(int(n) for n in found[2].split(",") if n)
            total += 0 if "S(1)" in (found[3] or "") else 2 * size
    assert total > 0  # the loop was found
    return total
