"""Direct preference optimisation on chosen tokens only (Rafailov et al. 2023; AQAA paper, section 3.3, Eq. 2).

The masks choose the tokens that carry loss. AQAA leaves audio tokens out, because plain DPO pulled text and audio
apart; they stay in the context. Which other tokens count is for the maker of the masks (``data/pairs.py``).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aqaa_jax.losses.masked import Mask

KINDS = ("sigmoid", "ipo")


class Dpo(NamedTuple):
    """Per pair, float32. The rewards are ``beta`` times the log-ratios, for the log (no gradient)."""

    losses_B: Float[Array, "*B"]
    chosen_rewards_B: Float[Array, "*B"]
    rejected_rewards_B: Float[Array, "*B"]


def masked_log_ratio(
    policy_BL: Float[Array, "B L"],
    reference_BL: Float[Array, "B L"],
    loss_mask_BL: Mask,
    *,
    length_normalised: bool = False,
) -> Float[Array, "B"]:
    """Sum over the masked tokens of log pi(token) - log pi_reference(token), 0 for a row without any.

    The difference is taken token by token, before the sum: long rows keep their precision. ``length_normalised``
    gives the mean over the masked tokens instead.
    """
    ones = jnp.ones(policy_BL.shape, jnp.int32)
    return answer_log_ratios(policy_BL, reference_BL, loss_mask_BL, ones, 1, length_normalised=length_normalised)[:, 0]


def answer_log_ratios(
    policy_BK: Float[Array, "B K"],
    reference_BK: Float[Array, "B K"],
    loss_mask_BK: Mask,
    answer_BK: Int[Array, "B K"],
    answers: int,
    *,
    length_normalised: bool = False,
) -> Float[Array, "B A"]:
    """``masked_log_ratio`` of each answer of a packed row: ``answer_BK``, 1 ... ``answers``, says whose a token is."""
    mask_BK = loss_mask_BK.astype(jnp.float32)
    ratio_BK = policy_BK.astype(jnp.float32) - jax.lax.stop_gradient(reference_BK).astype(jnp.float32)
    member_BKA = jax.nn.one_hot(answer_BK - 1, answers, dtype=jnp.float32)
    ratio_BA = jnp.einsum("bk,bka->ba", jnp.where(mask_BK != 0, ratio_BK * mask_BK, 0.0), member_BKA)
    if not length_normalised:
        return ratio_BA
    return ratio_BA / jnp.maximum(jnp.einsum("bk,bka->ba", mask_BK, member_BKA), 1.0)


def preference(
    chosen_B: Float[Array, "*B"],
    rejected_B: Float[Array, "*B"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    kind: str = "sigmoid",
) -> Dpo:
    """The loss of every pair from the log-ratios of its two answers; this is the one place where ``beta`` enters.

    ``sigmoid``: -log sigmoid(beta * margin), where ``label_smoothing`` is the probability that the labels are swapped
    (conservative DPO). ``ipo``: (margin - 1 / (2 beta))^2 (Azar et al. 2023, whose tau is ``beta``); on
    length-normalised log-ratios it is TRL's. A pair without any counted token has log-ratios of 0: its loss is log 2
    (``ipo``: a constant too), it has no gradient, and it still counts as a pair. Raises ``ValueError`` for an unknown
    ``kind`` and unless ``beta`` > 0 and 0 <= ``label_smoothing`` < 0.5 (0 for ``ipo``).
    """
    check(beta, label_smoothing, kind)
    margin_B = chosen_B - rejected_B
    if kind == "ipo":
        losses_B = jnp.square(margin_B - 1 / (2 * beta))
    else:
        right_B, swapped_B = jax.nn.log_sigmoid(beta * margin_B), jax.nn.log_sigmoid(-beta * margin_B)
        losses_B = -(1 - label_smoothing) * right_B - label_smoothing * swapped_B
    return Dpo(losses_B, beta * jax.lax.stop_gradient(chosen_B), beta * jax.lax.stop_gradient(rejected_B))


def check(beta: float, label_smoothing: float, kind: str) -> None:
    """Raise ``ValueError`` naming a setting of ``preference`` that makes no sense."""
    if beta <= 0 or not 0 <= label_smoothing < 0.5:
        raise ValueError(f"beta {beta} must be positive and label_smoothing {label_smoothing} in [0, 0.5)")
    if kind not in KINDS:
        raise ValueError(f"preference loss {kind!r} is none of {', '.join(KINDS)}")
    if kind == "ipo" and label_smoothing:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected 0 with the loss 'ipo', which has none")


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
    kind: str = "sigmoid",
    length_normalised: bool = False,
) -> Dpo:
    """``preference`` of pairs given apart, from per-token log-probabilities of policy and reference."""
    chosen_B = masked_log_ratio(
        policy_chosen_BL, reference_chosen_BL, chosen_mask_BL, length_normalised=length_normalised
    )
    rejected_B = masked_log_ratio(
        policy_rejected_BL, reference_rejected_BL, rejected_mask_BL, length_normalised=length_normalised
    )
    return preference(chosen_B, rejected_B, beta=beta, label_smoothing=label_smoothing, kind=kind)
