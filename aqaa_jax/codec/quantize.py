"""Vector quantisation: the nearest row of a codebook."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from aqaa_jax.nn.params import normal, weight
from aqaa_jax.sharding.axes import CODEBOOK, EMBED


def nearest(x: Float[Array, "*B D"], codebook_QD: Float[Array, "Q D"]) -> tuple[Int[Array, "*B"], Float[Array, "*B Q"]]:
    """Codes int32 of the nearest rows by Euclidean distance, and the squared distances less ``|x|^2``.

    ``argmin(|c|^2 - 2 x.c)``, in float32 at the highest matrix precision: on accelerators the default would move
    codes. The first of equal rows wins.
    """
    x, codebook_QD = x.astype(jnp.float32), codebook_QD.astype(jnp.float32)
    dots = jnp.einsum("...d,qd->...q", x, codebook_QD, precision=jax.lax.Precision.HIGHEST)
    distances = jnp.sum(jnp.square(codebook_QD), axis=-1) - 2 * dots
    return jnp.argmin(distances, axis=-1).astype(jnp.int32), distances


def l2_normalise(x: Float[Array, "*B D"], eps: float = 1e-12) -> Float[Array, "*B D"]:
    """Rows scaled to unit length; a row shorter than ``eps`` is divided by ``eps``. The gradient at zero is zero."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, eps * eps))


class Codebook(nnx.Module):
    """A table of ``codes`` vectors; ``normalise`` brings inputs (not the table) to unit length first."""

    def __init__(self, codes: int, embed: int, *, normalise: bool = False, rngs: nnx.Rngs):
        self.table = weight(rngs, (codes, embed), (CODEBOOK, EMBED), normal(embed**-0.5))
        self.normalise = normalise

    def __call__(self, x: Float[Array, "*B D"]) -> Int[Array, "*B"]:
        """The code of each vector."""
        return nearest(l2_normalise(x) if self.normalise else x, self.table[...])[0]

    def lookup(self, codes: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """The vectors of ``codes``."""
        return jnp.take(self.table[...], codes, axis=0, mode="clip")
