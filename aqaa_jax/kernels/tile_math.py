"""What the Pallas kernels compute on one tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def put_lane(columns: jax.Array, lane: jax.Array | int, x: jax.Array) -> jax.Array:
    """``columns`` with those of ``x`` in one lane; both ``[n, 128]``."""
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, columns.shape, 1) == lane, x, columns)


def for_each(n: int, step: Callable[[Any, Any], Any], carry: Any, *, unrolled: bool) -> Any:
    """``carry = step(i, carry)`` for all of ``n``: unrolled for a compiler that overlaps the steps, else as a loop."""
    if not unrolled:
        return jax.lax.fori_loop(0, n, step, carry)
    for i in range(n):
        carry = step(i, carry)
    return carry
