"""Matrix products of activations with weights of several axes."""

from __future__ import annotations

import math

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def project(
    x: Float[Array, "*B in"], weight: Float[Array, "..."], *, in_axes: int = 1, out_dtype: DTypeLike | None = None
) -> Float[Array, "*B out"]:
    """Contract the last ``in_axes`` axes of ``x`` with the first ones of ``weight``.

    The product runs on two-dimensional views: with the batch axes apart, the CPU compiler writes a
    transposed copy of every activation for the weight gradient, which doubled the time of a training step.
    """
    weight = weight.astype(x.dtype)
    batch, inner, outer = x.shape[: x.ndim - in_axes], weight.shape[:in_axes], weight.shape[in_axes:]
    x_TD = x.reshape(math.prod(batch), math.prod(inner))
    y_TF = jax.lax.dot(x_TD, weight.reshape(math.prod(inner), math.prod(outer)), preferred_element_type=out_dtype)
    return y_TF.reshape(*batch, *outer)
