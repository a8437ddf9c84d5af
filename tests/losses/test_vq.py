"""Quantiser losses: straight-through gradient, and which side moves."""

import jax
import jax.numpy as jnp
import numpy as np

from aqaa_jax.losses.vq import codebook_and_commitment, straight_through


def test_straight_through():
    x, q = jnp.array([1.0, 2.0]), jnp.array([5.0, -1.0])
    np.testing.assert_allclose(straight_through(x, q), q)
    np.testing.assert_array_equal(
        jax.grad(lambda x: jnp.sum(straight_through(x, q) * jnp.array([2.0, 3.0])))(x), [2, 3]
    )


def test_commitment_scales_the_pull_on_vectors_only_and_masked_entries_do_not_count():
    x, q = jnp.ones((3, 2)), jnp.zeros((3, 2))
    mask = jnp.array([1.0, 1.0, 0.0])
    value, count = codebook_and_commitment(x, q, mask, 0.25)
    assert float(value) == 5.0 and float(count) == 2.0
    gx, gq = jax.grad(lambda x, q: codebook_and_commitment(x, q, mask, 0.25)[0], argnums=(0, 1))(x, q)
    np.testing.assert_allclose(gx, 0.5 * mask[:, None] * jnp.ones((3, 2)))
    np.testing.assert_allclose(gq, -2.0 * mask[:, None] * jnp.ones((3, 2)))
