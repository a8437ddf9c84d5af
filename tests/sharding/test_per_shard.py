"""``per_shard``: a function on each device's pieces gives what the function on whole arrays gives."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqaa_jax.config import MeshConfig, ShardingConfig
from aqaa_jax.sharding.axes import ACT_EMBED, ACT_EXPERTS, ACT_MLP, BATCH, EMBED, EXPERTS, LENGTH, MLP
from aqaa_jax.sharding.mesh import make_mesh
from aqaa_jax.sharding.partition import constrain, mesh_axes, partitioning, per_shard
from aqaa_jax.sharding.rules import rules_of, strategy

X_BD = jax.random.normal(jax.random.key(0), (8, 4))
UP_DF = jax.random.normal(jax.random.key(1), (4, 16))
DOWN_FD = jax.random.normal(jax.random.key(2), (16, 4))


class Weights(NamedTuple):
    up_DF: jax.Array
    down_FD: jax.Array


def feed_forward(x_BD, weights, scale):
    """Sums over ``tensor`` by hand; ``constrain`` inside leaves pieces alone."""
    h_BF = constrain(jnp.tanh(x_BD @ weights.up_DF), BATCH, ACT_MLP)
    y_BD = h_BF @ weights.down_FD * scale
    axes = mesh_axes(ACT_MLP)
    return (jax.lax.psum(y_BD, axes) if axes else y_BD), x_BD.shape[0] * jnp.ones(())


def loss(x_BD, weights):
    # the weights come whole in their model width: gathered if the strategy splits it
    run = per_shard(feed_forward, [(BATCH, None), Weights((None, MLP), (MLP, None)), None], ((BATCH, None), None))
    y_BD, rows = run(x_BD, weights, 0.5)
    return jnp.mean(jnp.square(y_BD)), rows


@pytest.mark.parametrize("name", ["replicated", "data", "fsdp", "tensor", "fsdp_tensor"])
def test_same_values_and_gradients(name):
    weights = Weights(UP_DF, DOWN_FD)
    step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, rows), grads = step(X_BD, weights)
    assert rows == 8  # outside of a context it is the function itself
    with partitioning(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), strategy(name)):
        (value_here, rows), grads_here = jax.jit(step)(X_BD, weights)
    assert rows == (8 if name == "replicated" else 2)
    np.testing.assert_allclose(value_here, value, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(grads_here), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_tokens_go_to_their_experts_and_back():
    """All-to-all by logical names: rows of the batch out, experts in."""

    def to_experts(x_EBD, w_EDD):
        axes = mesh_axes(EXPERTS)
        if axes:
            x_EBD = jax.lax.all_to_all(x_EBD, axes, 0, 1, tiled=True)
        y_EBD = jnp.einsum("ebd,edf->ebf", x_EBD, w_EDD)
        return jax.lax.all_to_all(y_EBD, axes, 1, 0, tiled=True) if axes else y_EBD

    run = per_shard(to_experts, [(None, BATCH, None), (EXPERTS, None, None)], (None, BATCH, None))
    x_EBD, w_EDD = jax.random.normal(jax.random.key(3), (4, 8, 4)), jax.random.normal(jax.random.key(4), (4, 4, 4))
    whole = run(x_EBD, w_EDD)
    with partitioning(make_mesh(MeshConfig(data=2, expert=4)), strategy("expert")):
        assert mesh_axes(ACT_EXPERTS) == ("expert",) and mesh_axes(EMBED) == ()
        np.testing.assert_allclose(jax.jit(run)(x_EBD, w_EDD), whole, atol=1e-6)


def test_one_inside_another_is_the_function_itself():
    inner = per_shard(lambda x: 2 * x, [(BATCH, None)], (BATCH, None))
    outer = per_shard(lambda x: inner(x) + 1, [(BATCH, None)], (BATCH, None))
    with partitioning(make_mesh(MeshConfig(fsdp=4)), strategy("fsdp")):
        np.testing.assert_allclose(jax.jit(outer)(X_BD), 2 * X_BD + 1)


def test_mistakes_are_errors():
    double = lambda x: 2 * x  # noqa: E731
    with partitioning(make_mesh(MeshConfig(fsdp=2, tensor=2)), strategy("fsdp_tensor")):
        for in_axes, out_axes, message in [
            ([(BATCH,)], (BATCH, None), "name 1 dimensions"),
            ([(BATCH, "mpl")], (BATCH, None), "unknown logical axis 'mpl'"),
            ([(BATCH, None)], (BATCH, EMBED), "used twice"),
            ([(None, None), (BATCH, None)], (BATCH, None), "1 arguments for in_axes of 2"),
        ]:
            with pytest.raises(ValueError, match=message):
                per_shard(double, in_axes, out_axes)(X_BD)
        with pytest.raises(ValueError, match="size 7 does not split evenly over 2"):
            per_shard(double, [(BATCH, None)], (BATCH, None))(X_BD[:7])
        with pytest.raises(ValueError, match="unknown logical axis 'lenght'"):
            mesh_axes("lenght")
    assert mesh_axes(LENGTH) == () == mesh_axes(ACT_EMBED)


def test_single_entries_of_a_table_can_be_overridden():
    config = ShardingConfig(strategy="fsdp_tensor", rules={"mlp": ("tensor", "fsdp"), "embed": ()})
    table = rules_of(config)
    assert table[MLP] == ("tensor", "fsdp") and table[EMBED] == () and table[BATCH] == strategy("fsdp")[BATCH]
    for rules, message in [
        ({"mpl": ("tensor",)}, "unknown logical axis 'mpl'"),
        ({"mlp": ("tensr",)}, r"'mlp' goes over \['tensr'\]"),
        ({"mlp": ("tensor", "tensor")}, "names a mesh axis twice"),
    ]:
        with pytest.raises(ValueError, match=message):
            rules_of(ShardingConfig(rules=rules))
    with pytest.raises(ValueError, match="unknown sharding strategy 'fdsp'"):
        rules_of(ShardingConfig(strategy="fdsp"))
