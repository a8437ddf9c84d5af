"""Attention of every frame to every frame, without positions: the tokenizer's and the vocoder's."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MASKED = -1e30
FEW = 2**20  # logits of a row that a CPU holds in its cache, whatever is done with them
MOST = 2**22  # logits of the heads that a CPU takes at a time


def full_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSNH: Float[Array, "B S N H"],
    v_BSNH: Float[Array, "B S N H"],
    seen_BS: Float[Array, "B S"] | None = None,
) -> Float[Array, "B T N H"]:
    """``softmax(q k / sqrt(H)) v``, logits in float32; keys where ``seen_BS`` is 0 are left out."""
    B, T, N, H = q_BTNH.shape
    S = k_BSNH.shape[1]
    bias_BS = jnp.zeros((B, S)) if seen_BS is None else jnp.where(seen_BS > 0, 0.0, MASKED)
    arrays = (q_BTNH * H**-0.5, k_BSNH, v_BSNH, bias_BS)
    if N * T * S <= FEW:
        return _at_once(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=_by_heads, default=_at_once)


def _at_once(q_BTNH: Array, k_BSNH: Array, v_BSNH: Array, bias_BS: Array) -> Array:
    logits_BNTS = jnp.einsum("btnh,bsnh->bnts", q_BTNH, k_BSNH).astype(jnp.float32) + bias_BS[:, None, None]
    weights_BNTS = jax.nn.softmax(logits_BNTS, axis=-1).astype(v_BSNH.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights_BNTS, v_BSNH)


def _by_heads(q_BTNH: Array, k_BSNH: Array, v_BSNH: Array, bias_BS: Array) -> Array:
    """The same, as many heads at a time as leave their logits in the cache.

    The barrier keeps the softmax out of the second product: the CPU compiler's library would compute both in one
    graph of operations, at a third of the speed.
    """
    B, T, N, H = q_BTNH.shape
    S = k_BSNH.shape[1]

    def head(q_TH: Array, k_SH: Array, v_SH: Array, bias_S: Array) -> Array:
        logits_TS = jax.lax.dot_general(q_TH, k_SH, (((1,), (1,)), ((), ()))).astype(jnp.float32) + bias_S
        weights_TS = jax.nn.softmax(logits_TS, axis=-1).astype(v_SH.dtype)
        return jax.lax.optimization_barrier(weights_TS) @ v_SH

    heads = max(g for g in range(1, B * N + 1) if B * N % g == 0 and (g == 1 or g * T * S <= MOST))
    groups = [x.swapaxes(1, 2).reshape(-1, heads, x.shape[1], H) for x in (q_BTNH, k_BSNH, v_BSNH)]
    bias_GXS = jnp.repeat(bias_BS, N, axis=0).reshape(-1, heads, S)
    several: Callable[..., Array] = jax.vmap(head)
    if heads == B * N:
        y = several(*(x[0] for x in (*groups, bias_GXS)))
    else:
        y = jax.lax.map(lambda group: several(*group), (*groups, bias_GXS))
    return y.reshape(B, N, T, H).swapaxes(1, 2)
