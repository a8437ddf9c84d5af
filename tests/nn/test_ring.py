"""Gradients of weights added up round rings of devices: those of one device, and of one product and reduce-scatter."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from aqaa_jax.config import MeshConfig
from aqaa_jax.nn import ring
from aqaa_jax.nn.mlp import SwiGLU
from aqaa_jax.nn.project import project_each
from aqaa_jax.sharding.manual import over_rows
from aqaa_jax.sharding.mesh import make_mesh
from aqaa_jax.sharding.partition import by_hand, partitioning, shard
from aqaa_jax.sharding.rules import strategy

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(ring, "SMALLEST", 0)


@pytest.fixture
def rings(monkeypatch):
    """Sets how many devices are in a ring: off a TPU it is all of them."""
    return lambda devices: monkeypatch.setattr(ring, "ring_of", lambda mesh, names: devices)


def scattered(x, g, sizes, names, rings=True):
    """The rows of every device, one below the other, and the text of the program; ``x`` and ``g`` one a device."""
    mesh = make_mesh(MeshConfig(**sizes))
    rest = tuple(axis for axis in mesh.axis_names if axis not in names)

    def here(x, g):
        with by_hand(mesh.axis_names, rings=rings):
            return ring.scattered_product(x[0], g[0], names)

    given, out = PartitionSpec((*rest, *names)), PartitionSpec((*rest, *names))
    run = jax.shard_map(here, mesh=mesh, in_specs=(given, given), out_specs=out, check_vma=False)
    with partitioning(mesh, strategy("fsdp")):
        compiled = jax.jit(run).lower(x, g).compile()
    return compiled(x, g), compiled.as_text()


def assert_same(found, expected):
    for name in ("gate", "up", "down"):
        theirs = getattr(expected, name).get_value()
        np.testing.assert_allclose(getattr(found, name).get_value(), theirs, atol=1e-5 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize(
    "sizes, names, devices",
    [
        ({"fsdp": 8}, ("fsdp",), 8),
        ({"fsdp": 8}, ("fsdp",), 4),
        ({"fsdp": 8}, ("fsdp",), 2),
        ({"data": 2, "fsdp": 4}, ("fsdp",), 4),
        ({"fsdp": 4, "context": 2}, ("fsdp", "context"), 4),
    ],
    ids=str,
)
def test_a_ring_scatters_the_sum_of_products(sizes, names, devices, rings):
    rings(devices)
    size = int(np.prod([sizes[name] for name in names]))
    keys = jax.random.split(KEY, 2)
    x, g = jax.random.normal(keys[0], (8, 24, 1024)), jax.random.normal(keys[1], (8, 24, 384))
    out, text = scattered(x, g, sizes, names)
    sums = np.einsum("ntd,ntf->ndf", x, g).reshape(8 // size, size, 1024, 384).sum(axis=1)
    np.testing.assert_allclose(out.reshape(sums.shape), sums, atol=1e-4)
    assert len(re.findall(r" collective-permute(?:-start)?\(", text)) == 2 * (devices - 1)
    assert (" reduce-scatter(" in text) == (devices < size)
    plain, text = scattered(x, g, sizes, names, rings=False)
    np.testing.assert_allclose(out, plain, atol=1e-4)
    assert "collective-permute" not in text


def test_parts_of_a_gather_grow():
    size = 2 * 12288 * 31232
    assert [cut // 128 for cut in ring._cuts(244, size, 1.75)] == [20, 55, 116]  # the first of 60 MiB
    assert [cut // 128 for cut in ring._cuts(61, size // 4, 1)] == [20, 40]  # over four of tensor: all of 60 MiB
    assert ring._cuts(8, 72 * 2**20, 1.75) == [4 * 128]
    assert ring._cuts(2, 2**30, 1.75) == [128] and ring._cuts(1, 2**30, 1.75) == []


def test_where_the_kernel_does_not_run_there_is_no_ring(monkeypatch):
    x, g = jnp.ones((8, 24, 1024)), jnp.ones((8, 24, 384))
    assert "collective-permute" in scattered(x, g, {"fsdp": 8}, ("fsdp",))[1]
    monkeypatch.setattr(ring, "runs_here", lambda: False)
    assert "collective-permute" not in scattered(x, g, {"fsdp": 8}, ("fsdp",))[1]


def test_what_does_not_pay_is_one_reduce_scatter(monkeypatch):
    x, g = jnp.ones((8, 24, 1024)), jnp.ones((8, 24, 384))
    for wide, columns in ((1000, 384), (1024, 380)):
        _, text = scattered(x[..., :wide], g[..., :columns], {"fsdp": 8}, ("fsdp",))
        assert "collective-permute" not in text and " reduce-scatter(" in text
    monkeypatch.setattr(ring, "SMALLEST", 128 * 192 * 4 + 1)
    assert "collective-permute" not in scattered(x, g, {"fsdp": 8}, ("fsdp",))[1]


@pytest.mark.parametrize(
    "sizes, table, devices",
    [
        ({"data": 2, "fsdp": 4}, "hsdp", 2),
        ({"fsdp": 4, "tensor": 2}, "fsdp_tensor", 4),
        ({"fsdp": 4, "tensor": 2}, "fsdp_tensor_sequence", 4),
        ({"fsdp": 2, "context": 2}, "fsdp_context", 4),
    ],
    ids=str,
)
def test_a_layer_with_rings_has_the_gradients_of_one_device(sizes, table, devices, rings, monkeypatch):
    """Of gate, up (pieces along the inputs) and down (along the outputs), whose product is turned."""
    rings(devices)
    monkeypatch.setattr(ring, "DOWN", 0)
    monkeypatch.setattr(ring, "WHOLE", 0)
    monkeypatch.setattr(ring, "FIRST", 2**19)
    model, x = SwiGLU(1024, 1024, rngs=nnx.Rngs(0)), jax.random.normal(KEY, (8, 16, 1024))

    def gradients(total, model, x, key):
        return jax.grad(lambda model: jnp.sum(model(x) ** 2))(model), total(jnp.sum(x))

    expected, _ = jax.jit(functools.partial(gradients, lambda x: x))(model, x, KEY)
    mesh, rules = make_mesh(MeshConfig(**sizes)), strategy(table)
    with partitioning(mesh, rules):
        run = jax.jit(functools.partial(over_rows, gradients, rings=True))
        compiled = run.lower(shard(model, mesh, rules), x, KEY).compile()
        found, _ = compiled(shard(model, mesh, rules), x, KEY)
    assert compiled.as_text().count(" collective-permute") >= 3 * 2 * (devices - 1)
    gathers = re.findall(r" all-gather(?:-start)?\(", compiled.as_text())
    assert len(gathers) >= 3 + 2  # one a weight, the compiler sees; down for its gradient in two parts or more
    assert_same(found, expected)


@pytest.mark.parametrize("first", [True, False])
def test_the_first_product_of_a_block_gets_its_weight_in_parts(first, monkeypatch):
    """Without rings too: nothing before it hides the gather."""
    monkeypatch.setattr(ring, "WHOLE", 2**19)
    monkeypatch.setattr(ring, "FIRST", 2**19)
    model, x = SwiGLU(1024, 1024, rngs=nnx.Rngs(0)), jax.random.normal(KEY, (8, 16, 1024))

    def gradients(total, model, x, key):
        def loss(model):
            return sum(jnp.sum(y**2) for y in project_each(x, (model.gate, model.up), first=first))

        return jax.grad(loss)(model), total(jnp.sum(x))

    expected, _ = jax.jit(functools.partial(gradients, lambda x: x))(model, x, KEY)
    mesh, rules = make_mesh(MeshConfig(fsdp=8)), strategy("fsdp")
    with partitioning(mesh, rules):
        run = jax.jit(functools.partial(over_rows, gradients, rings=False))
        compiled = run.lower(shard(model, mesh, rules), x, KEY).compile()
        found, _ = compiled(shard(model, mesh, rules), x, KEY)
    assert_same(found, expected)
    gathers = len(re.findall(r" all-gather(?:-start)?\(", compiled.as_text()))
    assert gathers > 2 * 2 if first else gathers == 2  # of a whole weight one gather serves both passes
