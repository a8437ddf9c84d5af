"""What the Pallas kernels compute on one tile."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from aqaa_jax.kernels.tiles import LANES

LOWEST = -1e38  # below the logit of any pair, forbidden ones too


def dot(x: jax.Array, y: jax.Array, contract: tuple[int, int] = (1, 0)) -> jax.Array:
    """Matrix product over the given axes, summed in float32; float32 factors are not rounded to bfloat16."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(x, y, axes, precision=precision, preferred_element_type=jnp.float32)


def as_columns(row: jax.Array) -> jax.Array:
    """``[1, n]`` to ``[n, 128]``, equal in all lanes."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def over_lanes(columns: jax.Array, n: int) -> jax.Array:
    """``[m, 128]`` equal in all lanes to ``[m, n]``."""
    return columns[:, :n] if n <= LANES else jnp.tile(columns, (1, n // LANES))
