"""Nearest codes."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aqaa_jax.codec.quantize import Codebook, l2_normalise, nearest


def test_nearest_is_the_euclidean_argmin():
    rng = np.random.default_rng(0)
    x, table = rng.standard_normal((2, 7, 5)).astype(np.float32), rng.standard_normal((11, 5)).astype(np.float32)
    square = np.square(x[:, :, None] - table).sum(-1)
    codes, distances = nearest(jnp.asarray(x), jnp.asarray(table))
    assert codes.dtype == jnp.int32 and np.array_equal(codes, square.argmin(-1))
    assert np.abs(distances + np.square(x).sum(-1, keepdims=True) - square).max() < 1e-4


def test_the_first_of_equal_rows_wins():
    assert nearest(jnp.ones((1, 2)), jnp.ones((3, 2)))[0].tolist() == [0]


def test_a_codebook_finds_its_own_rows():
    book = Codebook(13, 4, rngs=nnx.Rngs(0))
    codes = jnp.arange(13)
    assert np.array_equal(book(book.lookup(codes)), codes)
    unit = Codebook(13, 4, normalise=True, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (9, 4))
    assert np.array_equal(unit(x), unit(7.0 * x))


def test_l2_normalise():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    assert np.allclose(l2_normalise(x), [[0.6, 0.8], [0.0, 0.0]])
    assert np.isfinite(jax.grad(lambda x: jnp.sum(l2_normalise(x) ** 2))(x)).all()
