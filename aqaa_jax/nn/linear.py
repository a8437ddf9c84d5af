"""Dense layers and embeddings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aqaa_jax.nn.params import Initializer, fan_in, normal, weight, zeros
from aqaa_jax.nn.project import project
from aqaa_jax.sharding.axes import EMBED, VOCAB
from aqaa_jax.sharding.manual import at_use


class Linear(nnx.Module):
    """``y = x @ kernel + bias``; ``axes`` are the logical axes of input and output width."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        axes: tuple[str, str],
        *,
        rngs: nnx.Rngs,
        use_bias: bool = True,
        init: Initializer | None = None,
        dtype: DTypeLike = jnp.float32,
    ):
        self.kernel = weight(rngs, (in_dim, out_dim), axes, init or fan_in(), dtype)
        self.bias = weight(rngs, (out_dim,), (axes[1],), zeros, dtype) if use_bias else None

    def __call__(self, x: Float[Array, "*B in"]) -> Float[Array, "*B out"]:
        y = project(x, at_use(self.kernel))
        return y if self.bias is None else y + at_use(self.bias).astype(x.dtype)


class Embedding(nnx.Module):
    """A table of ``vocab`` rows; ids out of range are the caller's error (``jnp.take`` clips)."""

    def __init__(
        self,
        vocab: int,
        embed: int,
        *,
        rngs: nnx.Rngs,
        init: Initializer | None = None,
        axes: tuple[str, str] = (VOCAB, EMBED),
        dtype: DTypeLike = jnp.float32,
    ):
        self.table = weight(rngs, (vocab, embed), axes, init or normal(), dtype)

    def __call__(self, ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        return jnp.take(self.table[...], ids, axis=0, mode="clip")


def gelu(x: jax.Array) -> jax.Array:
    """Exact (erf) GELU, as the published encoders use."""
    return jax.nn.gelu(x, approximate=False)
