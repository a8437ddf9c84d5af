"""Next-token cross-entropy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aqaa_jax.losses.masked import Mask, masked_sum_count


def token_log_probs(logits_BLV: Float[Array, "*B V"], targets_BL: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """log p(target) at every position, in float32.

    The targets are already aligned with the logits (nothing is shifted here). An id outside the vocabulary
    (such as -100) gives the value of the nearest id, to be masked by the caller.
    """
    logits_BLV = logits_BLV.astype(jnp.float32)
    chosen_BL1 = jnp.take_along_axis(logits_BLV, targets_BL[..., None], axis=-1, mode="clip")
    return chosen_BL1[..., 0] - jax.nn.logsumexp(logits_BLV, axis=-1)


def cross_entropy(
    logits_BLV: Float[Array, "*B V"], targets_BL: Int[Array, "*B"], loss_mask_BL: Mask
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """``(sum, count)`` of -log p(target) where ``loss_mask_BL`` is 1; both 0, and no gradient, without targets.

    ``losses.masked.mean`` gives the mean with a guard for count 0 (the published loss is NaN there);
    ``-token_log_probs`` is the same per token. Fractional masks weigh.
    """
    return masked_sum_count(-token_log_probs(logits_BLV, targets_BL), loss_mask_BL)
