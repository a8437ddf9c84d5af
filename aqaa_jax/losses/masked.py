"""Sums and counts under a mask: the currency of every loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Mask = Float[Array, "*B"] | Bool[Array, "*B"] | Int[Array, "*B"]


def masked_sum_count(values: Float[Array, "*B"], mask: Mask) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """``(sum of mask * values, sum of mask)`` in float32; what the mask leaves out may be anything, even NaN.

    Pairs add up over devices, rows and accumulation steps, means do not: divide once, at the end.
    Raises ``ValueError`` if the shapes differ (a broadcast here would count wrongly).
    """
    if values.shape != mask.shape:
        raise ValueError(f"values of shape {values.shape} under a mask of shape {mask.shape}")
    mask = mask.astype(jnp.float32)
    return jnp.sum(jnp.where(mask != 0, values.astype(jnp.float32) * mask, 0.0)), jnp.sum(mask)


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """``total / count``, and 0 (with a zero gradient) where nothing was counted."""
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1.0), 0.0)
