"""Vector-quantisation losses (VQ-VAE, van den Oord et al. 2017, section 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def straight_through(x: Float[Array, "*B D"], quantised: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """The quantised vector in the forward pass, the gradient of ``x`` in the backward pass."""
    return x + jax.lax.stop_gradient(quantised - x)


def codebook_and_commitment(
    x: Float[Array, "*B D"], quantised: Float[Array, "*B D"], mask: Float[Array, "*B"], commitment: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Squared distance pulling codes to vectors and, times ``commitment``, vectors to codes: ``(sum, count)``."""
    to_codes = jnp.sum(jnp.square(jax.lax.stop_gradient(x) - quantised), axis=-1)
    to_vectors = jnp.sum(jnp.square(x - jax.lax.stop_gradient(quantised)), axis=-1)
    return jnp.sum((to_codes + commitment * to_vectors) * mask), jnp.sum(mask)
