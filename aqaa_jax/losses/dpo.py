"""Direct preference optimisation on chosen tokens only (Rafailov et al. 2023; AQAA paper, section 3.3, Eq. 2)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from aqaa_jax.losses.masked import Mask


class Dpo(NamedTuple):
    """Per pair, float32. The rewards are ``beta`` times the masked log-ratios, for the log (no gradient)."""

    losses_B: Float[Array, "B"]
    chosen_rewards_B: Float[Array, "B"]
    rejected_rewards_B: Float[Array, "B"]


def masked_log_ratio(
    policy_BL: Float[Array, "B L"], reference_BL: Float[Array, "B L"], loss_mask_BL: Mask
) -> Float[Array, "B"]:
    """Sum over the masked tokens of log pi(token) - log pi_reference(token), 0 for a row without any.

    The difference is taken token by token, before the sum: long rows keep their precision.
    """
    mask_BL = loss_mask_BL.astype(jnp.float32)
    ratio_BL = policy_BL.astype(jnp.float32) - jax.lax.stop_gradient(reference_BL).astype(jnp.float32)
    return jnp.sum(jnp.where(mask_BL != 0, ratio_BL * mask_BL, 0.0), axis=-1)


def dpo(
    policy_chosen_BL: Float[Array, "B L"],
    policy_rejected_BL: Float[Array, "B R"],
    reference_chosen_BL: Float[Array, "B L"],
    reference_rejected_BL: Float[Array, "B R"],
    chosen_mask_BL: Mask,
    rejected_mask_BL: Mask,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Dpo:
    """The sigmoid DPO loss of every pair from per-token log-probabilities of policy and reference.

    The masks choose the tokens that carry loss; AQAA excludes audio tokens, because plain DPO pulled text and
    audio apart. A pair without any such token has loss log 2 and no gradient, and still counts as a pair.
    ``label_smoothing`` is the probability that the labels are swapped. Raises ``ValueError`` unless
    ``beta`` > 0 and 0 <= ``label_smoothing`` < 0.5.
    """
    if beta <= 0 or not 0 <= label_smoothing < 0.5:
        raise ValueError(f"beta {beta} must be positive and label_smoothing {label_smoothing} in [0, 0.5)")
    chosen_B = beta * masked_log_ratio(policy_chosen_BL, reference_chosen_BL, chosen_mask_BL)
    rejected_B = beta * masked_log_ratio(policy_rejected_BL, reference_rejected_BL, rejected_mask_BL)
    margin_B = chosen_B - rejected_B
    right_B, swapped_B = jax.nn.log_sigmoid(margin_B), jax.nn.log_sigmoid(-margin_B)
    losses_B = -(1 - label_smoothing) * right_B - label_smoothing * swapped_B
    return Dpo(losses_B, jax.lax.stop_gradient(chosen_B), jax.lax.stop_gradient(rejected_B))
