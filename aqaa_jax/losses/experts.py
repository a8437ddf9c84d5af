"""What keeps a mixture of experts in balance, and what is told of it: from sums over tokens, layer by layer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Term = tuple[Float[Array, ""], Float[Array, ""]]


def load_balance(
    share_E: Float[Array, "*layers E"], probability_E: Float[Array, "*layers E"], tokens: Float[Array, ""]
) -> Term:
    """``(sum, count)`` over tokens and layers of E * sum_e share_e * p_e; 1 when either is uniform over the experts.

    ``share_E`` is the part of all choices that each expert got, over whatever batch it was counted on (no gradient),
    ``probability_E`` the sum of the router's probabilities over ``tokens`` tokens (Switch Transformer, Fedus et al.
    2021, Eq. 4; a choice of several experts counts in parts).
    """
    sums = share_E.shape[-1] * jnp.sum(jax.lax.stop_gradient(share_E) * probability_E, axis=-1)
    return jnp.sum(sums), tokens * sums.size


def router_z(z: Float[Array, "*layers"], tokens: Float[Array, ""]) -> Term:
    """``(sum, count)`` of the squared log-sum-exp of the router's logits (ST-MoE, Zoph et al. 2022, Eq. 5)."""
    return jnp.sum(z), tokens * z.size


def expert_terms(stats: Any, tokens: Float[Array, ""]) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Terms from ``nn.router.ExpertStats``, stacked over layers, of ``tokens`` real tokens: losses and figures.

    ``expert_balance`` and ``expert_z`` are losses. ``expert_load`` [layers, E] is the mean number of choices of an
    expert per token. ``expert_entropy`` is that of the router's probabilities in nats; ``expert_peak`` the load of the
    busiest expert of each layer over the mean, ``expert_idle`` the part of experts with less than a tenth of it, both
    from ``share_E``; ``expert_dropped`` counts choices without an answer per token and layer, and is 0.
    """
    relative = jax.lax.stop_gradient(stats.share_E) * stats.share_E.shape[-1]
    return {
        "expert_balance": load_balance(stats.share_E, stats.probability_E, tokens),
        "expert_z": router_z(stats.z, tokens),
        "expert_load": (stats.load_E, tokens),
        "expert_entropy": (jnp.sum(stats.entropy), tokens * stats.entropy.size),
        "expert_peak": (jnp.mean(jnp.max(relative, axis=-1)) * tokens, tokens),
        "expert_idle": (jnp.mean(relative < 0.1) * tokens, tokens),
        "expert_dropped": (jnp.sum(stats.dropped), tokens * stats.dropped.size),
    }
