"""k-means by Lloyd's iterations in JAX: the linguistic codebook and the start of the semantic one."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@partial(jax.jit, static_argnames="block")
def _assign(x_ND: jax.Array, centroids_QD: jax.Array, block: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums and counts per centroid and the summed squared distance, ``block`` rows at a time."""
    norms_Q = jnp.sum(jnp.square(centroids_QD), axis=-1)

    def one(carry, x_bD):
        sums_QD, counts_Q, total = carry
        distances_bQ = norms_Q[None] - 2 * x_bD @ centroids_QD.T
        nearest_b = jnp.argmin(distances_bQ, axis=-1)
        total += jnp.sum(jnp.min(distances_bQ, axis=-1) + jnp.sum(jnp.square(x_bD), axis=-1))
        return (sums_QD.at[nearest_b].add(x_bD), counts_Q.at[nearest_b].add(1.0), total), None

    start = (jnp.zeros_like(centroids_QD), jnp.zeros(centroids_QD.shape[0]), jnp.zeros(()))
    blocks = x_ND[: x_ND.shape[0] // block * block].reshape(-1, block, x_ND.shape[1])
    return jax.lax.scan(one, start, blocks)[0]


def kmeans(
    x_ND: Float[np.ndarray, "N D"], codes: int, *, iterations: int = 20, seed: int = 0
) -> tuple[Float[Array, "Q D"], float]:
    """``codes`` centroids of the rows of ``x_ND`` and the mean squared distance to the nearest.

    Starts from distinct random rows; a centroid that loses all its rows moves to a random row.
    Raises ``ValueError`` when there are fewer rows than codes.
    """
    if len(x_ND) < codes:
        raise ValueError(f"k-means of {codes} codes needs at least as many rows, got {len(x_ND)}")
    rng = np.random.default_rng(seed)
    x = jnp.asarray(x_ND[rng.permutation(len(x_ND))], jnp.float32)
    block = min(4096, len(x_ND))
    used = len(x_ND) // block * block
    centroids, error = x[:codes], 0.0
    for _ in range(iterations):
        sums, counts, total = _assign(x, centroids, block)
        spare = x[rng.integers(0, len(x_ND), codes)]
        centroids = jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts[:, None], 1.0), spare)
        error = float(total) / used
    return centroids, error
