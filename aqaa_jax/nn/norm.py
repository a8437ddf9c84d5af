"""Normalisation layers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aqaa_jax.nn.params import ones, weight, zeros
from aqaa_jax.sharding.axes import NORM


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, statistics in float32."""

    def __init__(self, dim: int, eps: float = 1e-5, *, rngs: nnx.Rngs):
        self.scale = weight(rngs, (dim,), (NORM,), ones)
        self.bias = weight(rngs, (dim,), (NORM,), zeros)
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square norm with Step1's rounding.

    The reciprocal root is computed in float32 and rounded to the activation dtype *before* the
    multiplications (published ``modeling_step1.py``), which differs from the usual float32 RMSNorm in
    the last bfloat16 bit.
    """

    def __init__(self, dim: int, eps: float = 1e-5, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.scale = weight(rngs, (dim,), (NORM,), ones, dtype)
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        mean_square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(mean_square + self.eps).astype(x.dtype)
        return x * inverse * self.scale[...].astype(x.dtype)
