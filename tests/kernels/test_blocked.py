"""Attention in blocks of XLA equals the reference, and its memory does not grow with the square of the length."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqaa_jax.kernels.blocked import blocked_attention
from aqaa_jax.nn.attention import attend, places_of
from tests.kernels.cases import check, inputs, packed, rows_of, whole


@pytest.mark.parametrize(("dtype", "limit"), [(jnp.float32, 1e-6), (jnp.bfloat16, 5e-3)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("N", "K", "H"), [(12, 1, 64), (6, 2, 128)])
def test_equals_the_formula(N, K, H, dtype, limit):
    B, L = 4, 83
    check(functools.partial(blocked_attention, block=32), inputs(B, L, N, K, H, dtype), rows_of(packed(B, L)), limit)


def test_queries_behind_earlier_keys():
    check(functools.partial(blocked_attention, block=16), inputs(2, 19, 4, 2, 16, S=50), whole(2, 19, 50), 1e-6)


def test_queries_in_any_order():
    places, *rest = rows_of(packed(2, 64))
    order = np.arange(64).reshape(8, 8)[[0, 7, 1, 6, 2, 5, 3, 4]].reshape(-1)  # that of kernels/context.py
    rows = (places[:, order], rest[0], rest[1][:, order], rest[2])
    check(functools.partial(blocked_attention, block=8), inputs(2, 64, 2, 1, 16), rows, 1e-6)


def test_a_slope_of_zero_keeps_the_mask():
    q, k, v, _ = inputs(1, 16, 2, 1, 8)
    outs = []
    for name in ("reference", "blocked"):
        places = places_of(name, jnp.arange(16)[None], jnp.arange(16)[None])
        outs.append(attend(q, k, v, places, (0.0, 0.5)))
        changed = attend(q, k, v.at[:, 9].add(1.0), places, (0.0, 0.5))
        np.testing.assert_array_equal(changed[:, :9], outs[-1][:, :9])
    np.testing.assert_allclose(outs[0], outs[1], atol=1e-6)


def test_memory_does_not_grow_with_the_square_of_the_length():
    def peak(L):
        q, k, v, g = inputs(1, L, 2, 1, 8)
        rows = whole(1, L)
        run = jax.jit(
            jax.grad(lambda *x: jnp.vdot(blocked_attention(*x, jnp.asarray([0.5, 0.1]), *rows), g), (0, 1, 2))
        )
        return run.lower(q, k, v).compile().memory_analysis().temp_size_in_bytes

    assert peak(8192) < 3 * peak(4096)
