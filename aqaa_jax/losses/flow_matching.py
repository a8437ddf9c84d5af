"""Optimal-transport conditional flow matching (Lipman et al. 2023; ``ConditionalCFM.compute_loss`` of cosyvoice).

The state moves on the straight path ``x(t) = (1 - (1 - sigma) t) noise + t target``, whose velocity is
``target - (1 - sigma) noise``. Losses are ``(sum, count)``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def flow_times(key: jax.Array, rows: int) -> Float[Array, "B"]:
    """Uniform times warped by ``1 - cos(pi/2 u)``: more of them near the noise, as the sampler's grid has."""
    return warp(jax.random.uniform(key, (rows,)))


def warp(u_B: Float[Array, "B"]) -> Float[Array, "B"]:
    """``1 - cos(pi/2 u)``."""
    return 1.0 - jnp.cos(0.5 * jnp.pi * u_B)


def path(
    noise_BTM: Float[Array, "B T M"], target_BTM: Float[Array, "B T M"], t_B: Float[Array, "B"], sigma: float
) -> tuple[Float[Array, "B T M"], Float[Array, "B T M"]]:
    """The state at flow time ``t_B`` and the velocity there."""
    t_B11 = t_B[:, None, None]
    state_BTM = (1.0 - (1.0 - sigma) * t_B11) * noise_BTM + t_B11 * target_BTM
    return state_BTM, target_BTM - (1.0 - sigma) * noise_BTM


def velocity_loss(
    predicted_BTM: Float[Array, "B T M"], velocity_BTM: Float[Array, "B T M"], mask_BT: Float[Array, "B T"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Squared error over real frames: ``(sum, count)``, counted per mel bin."""
    error_BTM = jnp.square(predicted_BTM.astype(jnp.float32) - velocity_BTM)
    # where, not a product: a padded frame may hold anything, even an infinity
    error_BTM = jnp.where(mask_BT[..., None] > 0, error_BTM, 0.0)
    return jnp.sum(error_BTM), jnp.sum(mask_BT) * velocity_BTM.shape[-1]


def keep_condition(key: jax.Array, rows: int, dropout: float) -> Float[Array, "B"]:
    """1 for rows that keep ``mu``, speaker and prompt; 0 with probability ``dropout`` (published 0.2)."""
    return (jax.random.uniform(key, (rows,)) >= dropout).astype(jnp.float32)


def prompt_mask(
    key: jax.Array, lengths_B: Int[Array, "B"], frames: int, *, probability: float, fraction: float
) -> Float[Array, "B T"]:
    """1 on the frames whose true mel is shown to the estimator as a prompt.

    With ``probability`` (published 0.5) a row shows its first ``n`` frames, ``n`` uniform in 0 ... ``fraction`` (0.3)
    of its length, rounded down; else none.
    """
    chosen_key, length_key = jax.random.split(key)
    rows = lengths_B.shape[0]
    longest_B = jnp.floor(fraction * lengths_B.astype(jnp.float32))
    # u < 1, but u * (n + 1) may round up to n + 1
    drawn_B = jnp.minimum(jnp.floor(jax.random.uniform(length_key, (rows,)) * (longest_B + 1.0)), longest_B)
    chosen_B = jax.random.uniform(chosen_key, (rows,)) < probability
    return (jnp.arange(frames) < jnp.where(chosen_B, drawn_B, 0.0)[:, None]).astype(jnp.float32)
