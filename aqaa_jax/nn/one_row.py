"""One row times a matrix of int8 or bfloat16 on a CPU, where reading the matrix is the work: decoding one token."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ROWS = 16  # summed in registers before anything is written


def one_row(x_1D: Float[Array, "1 D"], weight: Array) -> Float[Array, "1 F"]:
    """``x_1D`` times ``weight`` [in..., out...] as a matrix of D rows, in float32.

    The CPU compiler has no product for such a matrix: it writes a float32 copy of it to memory first. Here the
    conversion is part of one fused loop that multiplies and adds ``ROWS`` rows; the sums, a sixteenth of the elements,
    are added up by a product with ones (as a reduction they would be compiled to something many times slower).
    """
    # Tied to ``x``, or the conversion moves out of the loop over tokens: the whole float32 copy again.
    x_1D, weight = jax.lax.optimization_barrier((x_1D, weight))
    D = x_1D.shape[1]
    rows = math.gcd(D, ROWS)
    x_NR = x_1D.astype(jnp.float32).reshape(D // rows, rows)
    matrix_NRF = weight.reshape(D // rows, rows, weight.size // D)
    parts_NF = sum(x_NR[:, r, None] * _float32(matrix_NRF[:, r]) for r in range(rows))
    return jnp.ones((1, D // rows)) @ jax.lax.optimization_barrier(parts_NF)


def _float32(x: Array) -> Array:
    """``x`` widened; bfloat16 by its bits, which is an integer operation the compiler makes vectors of."""
    if x.dtype != jnp.bfloat16:
        return x.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32) << 16
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
