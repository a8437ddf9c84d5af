"""Int8 weights: the error of rounding, products equal to those of the dequantised weight, on both paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.nn import int8
from aqaa_jax.nn.int8 import Int8Weight
from aqaa_jax.nn.params import fan_in, weight
from aqaa_jax.nn.project import project
from aqaa_jax.sharding.axes import EMBED, HEAD_DIM, HEADS, MLP


@pytest.fixture
def heads():
    return weight(nnx.Rngs(0), (48, 4, 6), (EMBED, HEADS, HEAD_DIM), fan_in(0))


def test_rounding_moves_no_element_by_more_than_half_a_step(heads):
    rounded = Int8Weight(heads, 1)
    error = np.abs(rounded.dequantised() - heads[...])
    assert np.all(error <= np.abs(heads[...]).max(axis=0) / 254 * 1.001)
    assert rounded.values[...].dtype == jnp.int8 and np.abs(rounded.values[...]).max() == 127
    assert rounded.values.get_metadata()["axes"] == (EMBED, HEADS, HEAD_DIM)
    assert rounded.scale.get_metadata()["axes"] == (HEADS, HEAD_DIM)


def test_a_column_of_zeros_stays_zero():
    rounded = Int8Weight(nnx.Param(jnp.zeros((8, 3)).at[:, 1].set(2.0), axes=(EMBED, HEADS)), 1)
    np.testing.assert_array_equal(rounded.dequantised()[:, [0, 2]], 0.0)
    np.testing.assert_allclose(rounded.dequantised()[:, 1], 2.0, rtol=1e-6)


@pytest.mark.parametrize("tile", [1, 24 * 32, 2**19])  # as few rows as may be, some, all at once
def test_products_equal_those_of_the_dequantised_weight(heads, tile, monkeypatch):
    monkeypatch.setattr(int8, "TILE", tile)
    monkeypatch.setattr(int8, "FEWEST_ROWS", 1)
    x = jax.random.normal(jax.random.key(1), (2, 5, 48))
    rounded = Int8Weight(heads, 1)
    y = jax.jit(lambda w: project(x, w[...]))(rounded)
    np.testing.assert_allclose(y, project(x, rounded.dequantised()), rtol=2e-5, atol=2e-6)
    turned = nnx.Param(jnp.moveaxis(heads[...], 0, -1), axes=(HEADS, HEAD_DIM, EMBED))
    back = Int8Weight(turned, 2)
    z = jax.jit(lambda w: project(y, w[...], in_axes=2))(back)
    np.testing.assert_allclose(z, project(y, back.dequantised(), in_axes=2), rtol=2e-5, atol=2e-6)
    assert z.shape == (2, 5, 48)


def test_both_paths_agree(heads):
    values = Int8Weight(heads, 1).values[...].reshape(48, 24)
    x = jax.random.normal(jax.random.key(2), (3, 48))
    np.testing.assert_allclose(int8._by_rows(x, values), int8._whole(x, values), rtol=2e-5, atol=1e-4)
    half = int8._whole(x.astype(jnp.bfloat16), values)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(int8._by_rows(x.astype(jnp.bfloat16), values), half, rtol=2e-2, atol=1.0)


@pytest.mark.parametrize("shape", [(64, 40), (48, 4, 6), (30, 7), (7, 3)])  # rows: 16 times some, 2 times some, odd
def test_one_row_is_a_row_of_more(shape):
    values = jax.random.randint(jax.random.key(0), shape, -127, 128, jnp.int8)
    x = jax.random.normal(jax.random.key(1), (1, shape[0]))
    np.testing.assert_allclose(jax.jit(int8._on_cpu)(x, values), int8._whole(x, values), rtol=2e-5, atol=1e-4)


def test_a_loop_over_tokens_holds_no_float32_copy(as_for_users):
    size = 512
    rounded = Int8Weight(weight(nnx.Rngs(0), (size, size), (EMBED, MLP), fan_in()), 1)

    def tokens(x, rounded):
        return jax.lax.fori_loop(0, 9, lambda _, x: jnp.tanh(project(x, rounded)), x)

    compiled = jax.jit(tokens).lower(jnp.ones((1, size)), rounded).compile()
    memory = compiled.memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 4 * size * size / 8


def test_the_activation_dtype_is_kept(heads):
    x = jnp.ones((2, 48), jnp.bfloat16)
    rounded = Int8Weight(heads, 1)
    assert project(x, rounded).dtype == jnp.bfloat16
    assert project(x, rounded, out_dtype=jnp.float32).dtype == jnp.float32
