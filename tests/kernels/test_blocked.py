"""Attention in blocks of XLA equals the reference, and its memory does not grow with the square of the length."""

import functools

import jax.numpy as jnp
import pytest

from aqaa_jax.kernels.blocked import blocked_attention
from tests.kernels.cases import check, inputs, packed, rows_of, whole


@pytest.mark.parametrize(("dtype", "limit"), [(jnp.float32, 1e-6), (jnp.bfloat16, 5e-3)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("N", "K", "H"), [(12, 1, 64), (6, 2, 128)])
def test_equals_the_formula(N, K, H, dtype, limit):
    B, L = 4, 83
    check(functools.partial(blocked_attention, block=32), inputs(B, L, N, K, H, dtype), rows_of(packed(B, L)), limit)


def test_queries_behind_earlier_keys():
    check(functools.partial(blocked_attention, block=16), inputs(2, 19, 4, 2, 16, S=50), whole(2, 19, 50), 1e-6)
