"""The Pallas kernels, interpreted, equal the reference in value and gradients."""

import jax.numpy as jnp
import pytest

from aqaa_jax.kernels.flash import flash_attention
from tests.kernels.cases import check, inputs, packed, rows_of

LIMITS = {jnp.float32: 1e-6, jnp.bfloat16: 5e-3}


@pytest.mark.parametrize("dtype", LIMITS, ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("N", "K", "H"), [(12, 1, 128), (6, 2, 64), (4, 2, 32)])
def test_equals_the_reference(N, K, H, dtype):
    B, L = 4, 300
    check(flash_attention, inputs(B, L, N, K, H, dtype), rows_of(packed(B, L)), LIMITS[dtype])
