"""Next-token cross-entropy, from logits or, chunk by chunk, from hidden states and the head."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aqaa_jax.losses.masked import Mask, masked_sum_count
from aqaa_jax.sharding.axes import ACT_VOCAB, BATCH, LENGTH
from aqaa_jax.sharding.partition import constrain


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


def target_log_probs(
    hidden_BLD: Float[Array, "B L D"], head_DV: Float[Array, "D V"], targets_BL: Int[Array, "B L"], *, chunk: int = 0
) -> tuple[Float[Array, "B L"], Bool[Array, "B L"]]:
    """log p(target), float32, and whether no id is likelier, at every position, from normed hidden states.

    Logits exist for ``chunk`` positions of a row at a time (0: of all), in the forward pass and again in the
    backward pass, which computes them anew; their gradient is rounded to the dtype of ``hidden_BLD`` for the products,
    as that of any activation is, and the head's gradient is summed over chunks in float32. The chunks are strided, so
    that a length sharded over devices stays sharded in each. Targets as in ``token_log_probs``. Raises ``ValueError``
    for a negative ``chunk``.
    """
    if chunk < 0:
        raise ValueError(f"chunk is {chunk}; expected a number of positions, or 0 for all")
    L, head_DV = targets_BL.shape[1], head_DV.astype(hidden_BLD.dtype)
    targets_BL = jnp.clip(targets_BL, 0, head_DV.shape[1] - 1)
    many = -(-L // (chunk or L))
    padding = -L % many
    hidden_BLD = jnp.pad(hidden_BLD, ((0, 0), (0, padding), (0, 0)))
    targets_BL = jnp.pad(targets_BL, ((0, 0), (0, padding)))
    out = _target_log_probs(_split(hidden_BLD, many), head_DV, _split(targets_BL, many))
    log_probs_BL, right_BL = (jnp.moveaxis(x, 0, 2).reshape(x.shape[1], -1)[:, :L] for x in out)
    return log_probs_BL, right_BL


def _split(x_BL: jax.Array, many: int) -> jax.Array:
    """``many`` chunks as a leading axis; position p of a row is entry p // many of chunk p % many."""
    B, L, *rest = x_BL.shape
    return jnp.moveaxis(x_BL.reshape(B, L // many, many, *rest), 2, 0)


def _logits(hidden_BLD: jax.Array, head_DV: jax.Array) -> jax.Array:
    logits_BLV = jax.lax.dot_general(hidden_BLD, head_DV, (((2,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return constrain(logits_BLV, BATCH, LENGTH, ACT_VOCAB)


def _is_target(logits_BLV: jax.Array, targets_BL: jax.Array) -> jax.Array:
    """One-hot by comparison: unlike a gather it stays on the devices that hold their part of the vocabulary."""
    return jax.lax.broadcasted_iota(jnp.int32, logits_BLV.shape, 2) == targets_BL[..., None]


def _chunk_log_probs(hidden_BLD: jax.Array, head_DV: jax.Array, targets_BL: jax.Array) -> tuple[jax.Array, ...]:
    logits_BLV = _logits(hidden_BLD, head_DV)
    highest_BL = jnp.max(logits_BLV, axis=-1)
    lse_BL = highest_BL + jnp.log(jnp.sum(jnp.exp(logits_BLV - highest_BL[..., None]), axis=-1))
    chosen_BL = jnp.sum(jnp.where(_is_target(logits_BLV, targets_BL), logits_BLV, 0.0), axis=-1)
    return chosen_BL - lse_BL, chosen_BL >= highest_BL, lse_BL


@jax.custom_vjp
def _target_log_probs(
    hidden_XBLD: jax.Array, head_DV: jax.Array, targets_XBL: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _forward(hidden_XBLD, head_DV, targets_XBL)[0]


def _forward(hidden_XBLD: jax.Array, head_DV: jax.Array, targets_XBL: jax.Array) -> tuple[Any, Any]:
    one = functools.partial(_chunk_log_probs, head_DV=head_DV)
    log_probs_XBL, right_XBL, lse_XBL = jax.lax.map(lambda x: one(x[0], targets_BL=x[1]), (hidden_XBLD, targets_XBL))
    return (log_probs_XBL, right_XBL), (hidden_XBLD, head_DV, targets_XBL, lse_XBL)


def _backward(saved: Any, cotangents: Any) -> tuple[jax.Array, jax.Array, None]:
    hidden_XBLD, head_DV, targets_XBL, lse_XBL = saved

    def one(head_grad_DV: jax.Array, xs: Any) -> tuple[jax.Array, jax.Array]:
        hidden_BLD, targets_BL, lse_BL, cotangent_BL = xs
        logits_BLV = _logits(hidden_BLD, head_DV)
        p_BLV = jnp.exp(logits_BLV - lse_BL[..., None])
        grad_BLV = (_is_target(logits_BLV, targets_BL) - p_BLV) * cotangent_BL[..., None]
        grad_BLV = constrain(grad_BLV.astype(hidden_BLD.dtype), BATCH, LENGTH, ACT_VOCAB)
        added_DV = jax.lax.dot_general(
            hidden_BLD, grad_BLV, (((0, 1), (0, 1)), ((), ())), preferred_element_type=jnp.float32
        )
        return head_grad_DV + added_DV, jax.lax.dot_general(grad_BLV, head_DV, (((2,), (1,)), ((), ())))

    zeros_DV = jnp.zeros(head_DV.shape, jnp.float32)
    head_grad_DV, hidden_grad_XBLD = jax.lax.scan(one, zeros_DV, (hidden_XBLD, targets_XBL, lse_XBL, cotangents[0]))
    return hidden_grad_XBLD, head_grad_DV.astype(head_DV.dtype), None


_target_log_probs.defvjp(_forward, _backward)
