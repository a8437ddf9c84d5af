"""Matrix products of activations with weights of several axes."""

from __future__ import annotations

import math

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aqaa_jax.nn.int8 import Int8Weight


def project(
    x: Float[Array, "*B in"],
    weight: Float[Array, "..."] | Int8Weight,
    *,
    in_axes: int = 1,
    out_dtype: DTypeLike | None = None,
) -> Float[Array, "*B out"]:
    """Contract the last ``in_axes`` axes of ``x`` with the first ones of ``weight``.

    The product runs on two-dimensional views: with the batch axes apart, the CPU compiler writes a
    transposed copy of every activation for the weight gradient, which doubled the time of a training step.
    """
    batch = x.shape[: x.ndim - in_axes]
    if isinstance(weight, Int8Weight):
        y_TF = weight.matmul(x.reshape(math.prod(batch), -1)).astype(out_dtype or x.dtype)
        return y_TF.reshape(*batch, *weight.scale[...].shape)
    weight = weight.astype(x.dtype)
    x_T = x.reshape(math.prod(batch), *weight.shape[:in_axes])
    inner = tuple(range(in_axes))
    axes = ((tuple(i + 1 for i in inner), inner), ((), ()))
    y_T = jax.lax.dot_general(x_T, weight, axes, preferred_element_type=out_dtype)
    return y_T.reshape(*batch, *weight.shape[in_axes:])
