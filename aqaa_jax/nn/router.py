"""Which experts a token goes to, with which weights, and what that says of the balance between experts."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aqaa_jax.config import ExpertsConfig
from aqaa_jax.sharding.axes import BATCH, LENGTH
from aqaa_jax.sharding.partition import by_hand_axes

SCORES = ("softmax", "sigmoid")


class ExpertStats(NamedTuple):
    """Sums over the real tokens of a batch, float32, for ``losses/experts.py``: but for ``share_E`` they add up over
    batches, and over devices where each works on its own rows."""

    load_E: Float[Array, "E"]  # how many tokens chose each expert
    share_E: Float[Array, "E"]  # of all choices of all devices' tokens, those of each expert; no gradient
    probability_E: Float[Array, "E"]  # of the router's probabilities
    z: Float[Array, ""]  # of squared log-sum-exps of the router's logits
    entropy: Float[Array, ""]  # of the router's probabilities of a token, nats
    dropped: Float[Array, ""]  # choices that no expert answered


class Routing(NamedTuple):
    """The choice of every token, best first."""

    experts_BLk: Int[Array, "B L k"]
    weights_BLk: Float[Array, "B L k"]
    stats: ExpertStats


def check_experts(config: ExpertsConfig) -> None:
    """Raise ``ValueError`` naming a value that makes no router."""
    if not 1 <= config.top_k <= config.experts:
        raise ValueError(f"experts.top_k {config.top_k}: expected at least 1 and at most the {config.experts} experts")
    if config.score not in SCORES:
        raise ValueError(f"experts.score {config.score!r}: expected one of {', '.join(SCORES)}")


def route(
    logits_BLE: Float[Array, "B L E"],
    bias_E: Float[Array, "E"] | None,
    config: ExpertsConfig,
    real_BL: Bool[Array, "B L"] | None = None,
) -> Routing:
    """The ``top_k`` experts of every token by score plus bias, and the weights of their outputs by score alone.

    All in float32. The bias (Wang et al. 2024, arXiv 2408.15664) takes part in the choice only, so it has no gradient.
    Tokens outside ``real_BL`` (padding) are routed like others and not counted.
    """
    logits_BLE = logits_BLE.astype(jnp.float32)
    softmax = config.score == "softmax"
    scores_BLE = jax.nn.softmax(logits_BLE) if softmax else jax.nn.sigmoid(logits_BLE)
    order_BLE = jax.lax.stop_gradient(scores_BLE if bias_E is None else scores_BLE + bias_E)
    experts_BLk = jax.lax.top_k(order_BLE, config.top_k)[1]
    chosen_BLkE = jax.nn.one_hot(experts_BLk, config.experts, dtype=jnp.float32)
    weights_BLk = jnp.sum(chosen_BLkE * scores_BLE[:, :, None], axis=-1)  # a gather's gradient would be a scatter
    if config.normalise:
        weights_BLk = weights_BLk / jnp.sum(weights_BLk, axis=-1, keepdims=True)
    mask_BL = jnp.ones(logits_BLE.shape[:2]) if real_BL is None else real_BL.astype(jnp.float32)
    probability_BLE = scores_BLE if softmax else scores_BLE / jnp.sum(scores_BLE, axis=-1, keepdims=True)
    load_E = jnp.einsum("blke,bl->e", chosen_BLkE, mask_BL)
    rows = tuple(dict.fromkeys((*by_hand_axes(BATCH), *by_hand_axes(LENGTH))))
    total_E = jax.lax.psum(load_E, rows) if rows else load_E
    stats = ExpertStats(
        load_E=load_E,
        share_E=total_E / jnp.maximum(jnp.sum(total_E), 1.0),
        probability_E=jnp.einsum("ble,bl->e", probability_BLE, mask_BL),
        z=jnp.sum(mask_BL * jnp.square(jax.nn.logsumexp(logits_BLE, axis=-1))),
        entropy=jnp.sum(mask_BL * jnp.sum(jax.scipy.special.entr(probability_BLE), axis=-1)),
        dropped=jnp.zeros(()),
    )
    return Routing(experts_BLk, weights_BLk, stats)
