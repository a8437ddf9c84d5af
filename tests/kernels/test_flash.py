"""The Pallas kernels, interpreted, equal the reference in value and gradients."""

import jax.numpy as jnp
import pytest

from aqaa_jax.kernels.flash import flash_attention
from tests.kernels.cases import check, inputs, packed, rows_of, whole

LIMITS = {jnp.float32: 1e-6, jnp.bfloat16: 5e-3}


@pytest.mark.parametrize("dtype", LIMITS, ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("N", "K", "H"), [(12, 1, 128), (6, 2, 64)])
def test_equals_the_formula(N, K, H, dtype):
    B, L = 4, 300
    check(flash_attention, inputs(B, L, N, K, H, dtype), rows_of(packed(B, L)), LIMITS[dtype])


@pytest.mark.long
@pytest.mark.parametrize("dtype", LIMITS, ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("N", "K", "H"), [(96, 8, 128), (48, 4, 64), (4, 4, 128), (8, 2, 32)])
@pytest.mark.parametrize("L", [2, 127, 259])
def test_equals_the_formula_for_many_shapes(N, K, H, L, dtype):
    check(flash_attention, inputs(2, L, N, K, H, dtype), whole(2, L), LIMITS[dtype])
