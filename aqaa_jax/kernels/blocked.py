"""Attention in blocks of plain XLA: the memory of a row of blocks, on any device."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from aqaa_jax.kernels.places import FORBIDDEN, first_and_last, padded, sqrt_distance, visible_blocks

BLOCK = 512  # queries and keys of a block
_HIDDEN = -1e9  # below any logit of a visible key, above those of a forbidden one


def blocked_attention(
    q_BLNH: Float[Array, "B L N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    slopes_N: Float[Array, "N"],
    *rows: jax.Array,
    block: int = BLOCK,
) -> Float[Array, "B L N H"]:
    """What ``nn.attention.grouped_attention`` computes, with logits of one block of keys and queries at a time.

    ``rows``: query positions, key positions, query segments, key segments (``Places.rows``). Softmax runs online
    over the blocks of keys and is computed again in the backward pass, which keeps the output and one number
    per query and head (Dao et al., FlashAttention-2). Blocks in which nothing is visible are skipped. The sum of
    weights and the output are float32 until the end, and a query that sees nothing gets zeros: two
    deliberate differences from the reference.
    """
    B, L, N, H = q_BLNH.shape
    K = k_BSKH.shape[2]
    q_size, k_size = min(block, -(-L // 8) * 8), min(block, -(-k_BSKH.shape[1] // 8) * 8)
    sizes = (q_size, k_size, q_size, k_size)
    rows = tuple(padded(x, 1, size) for x, size in zip(rows, sizes, strict=True))
    q_BKGLH = padded(q_BLNH.reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4), 3, q_size)
    k_BKSH, v_BKSH = (padded(x.swapaxes(1, 2), 2, k_size) for x in (k_BSKH, v_BSKH))
    out_BKGLH: jax.Array = _attend(q_BKGLH, k_BKSH, v_BKSH, slopes_N.reshape(K, N // K), rows, (q_size, k_size))
    return out_BKGLH[:, :, :, :L].transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q_BKGLH, k_BKSH, v_BKSH, slopes_KG, rows, sizes) -> jax.Array:
    return _forward(q_BKGLH, k_BKSH, v_BKSH, slopes_KG, rows, sizes)[0]


def _forward(q_BKGLH, k_BKSH, v_BKSH, slopes_KG, rows, sizes):
    """The output and ``log_sum_BKGL``, the logarithm of the sum of exponentials; +FORBIDDEN if nothing is visible."""
    first_X, last_X = first_and_last(visible_blocks(rows, *sizes).any(0))
    shape_BKGL = (*q_BKGLH.shape[:3], sizes[0])

    def queries(_, i):
        q = _block(q_BKGLH, i, 3, sizes[0])

        def keys(j, carry):
            top_BKGL, sum_BKGL, out_BKGLH = carry
            logits_BKGLS = _logits(q, _block(k_BKSH, j, 2, sizes[1]), slopes_KG, rows, sizes, i, j)
            new_BKGL = jnp.maximum(top_BKGL, logits_BKGLS.max(-1))
            weights_BKGLS = jnp.exp(logits_BKGLS - new_BKGL[..., None])
            shrink_BKGL = jnp.exp(top_BKGL - new_BKGL)
            v_BKSH_j = _block(v_BKSH, j, 2, sizes[1])
            out_BKGLH = shrink_BKGL[..., None] * out_BKGLH + _dot(
                "bkgls,bksh->bkglh", weights_BKGLS.astype(v_BKSH.dtype), v_BKSH_j
            )
            return new_BKGL, shrink_BKGL * sum_BKGL + weights_BKGLS.sum(-1), out_BKGLH

        start = (jnp.full(shape_BKGL, -FORBIDDEN), jnp.zeros(shape_BKGL), jnp.zeros((*shape_BKGL, q_BKGLH.shape[-1])))
        top_BKGL, sum_BKGL, out_BKGLH = jax.lax.fori_loop(first_X[i], last_X[i] + 1, keys, start)
        seen_BKGL = top_BKGL > _HIDDEN
        out_BKGLH = jnp.where(seen_BKGL[..., None], out_BKGLH / jnp.maximum(sum_BKGL, 1.0)[..., None], 0)
        log_sum_BKGL = jnp.where(seen_BKGL, top_BKGL + jnp.log(jnp.maximum(sum_BKGL, 1.0)), FORBIDDEN)
        return None, (out_BKGLH.astype(q_BKGLH.dtype), log_sum_BKGL)

    _, (out, log_sum) = jax.lax.scan(queries, None, jnp.arange(len(first_X)))
    return _joined(out, 3), _joined(log_sum, 3)


def _attend_fwd(q_BKGLH, k_BKSH, v_BKSH, slopes_KG, rows, sizes):
    out_BKGLH, log_sum_BKGL = _forward(q_BKGLH, k_BKSH, v_BKSH, slopes_KG, rows, sizes)
    out_BKGLH = checkpoint_name(out_BKGLH, "attention_out")
    log_sum_BKGL = checkpoint_name(log_sum_BKGL, "attention_lse")
    return out_BKGLH, (q_BKGLH, k_BKSH, v_BKSH, slopes_KG, rows, out_BKGLH, log_sum_BKGL)


def _attend_bwd(sizes, kept, d_out_BKGLH):
    q_BKGLH, k_BKSH, v_BKSH, slopes_KG, rows, out_BKGLH, log_sum_BKGL = kept
    first_Y, last_Y = first_and_last(visible_blocks(rows, *sizes).any(0).T)
    delta_BKGL = jnp.sum(d_out_BKGLH.astype(jnp.float32) * out_BKGLH.astype(jnp.float32), -1)
    scale = q_BKGLH.shape[-1] ** -0.5

    def keys(d_q_BKGLH, j):
        k_BKSH_j, v_BKSH_j = _block(k_BKSH, j, 2, sizes[1]), _block(v_BKSH, j, 2, sizes[1])

        def queries(i, carry):
            d_q_BKGLH, d_k_BKSH, d_v_BKSH = carry
            q, d_out = _block(q_BKGLH, i, 3, sizes[0]), _block(d_out_BKGLH, i, 3, sizes[0])
            log_sum, delta = _block(log_sum_BKGL, i, 3, sizes[0]), _block(delta_BKGL, i, 3, sizes[0])
            weights_BKGLS = jnp.exp(_logits(q, k_BKSH_j, slopes_KG, rows, sizes, i, j) - log_sum[..., None])
            d_v_BKSH += _dot("bkgls,bkglh->bksh", weights_BKGLS.astype(q.dtype), d_out)
            d_weights = _dot("bkglh,bksh->bkgls", d_out, v_BKSH_j)
            d_logits = (weights_BKGLS * (d_weights - delta[..., None])).astype(q.dtype)
            d_k_BKSH += scale * _dot("bkgls,bkglh->bksh", d_logits, q)
            d_q = _block(d_q_BKGLH, i, 3, sizes[0]) + scale * _dot("bkgls,bksh->bkglh", d_logits, k_BKSH_j)
            d_q_BKGLH = jax.lax.dynamic_update_slice_in_dim(d_q_BKGLH, d_q, i * sizes[0], 3)
            return d_q_BKGLH, d_k_BKSH, d_v_BKSH

        nothing = jnp.zeros(k_BKSH_j.shape, jnp.float32)
        carry = jax.lax.fori_loop(first_Y[j], last_Y[j] + 1, queries, (d_q_BKGLH, nothing, nothing))
        return carry[0], (carry[1].astype(k_BKSH.dtype), carry[2].astype(v_BKSH.dtype))

    start = jnp.zeros(q_BKGLH.shape, jnp.float32)
    d_q_BKGLH, (d_k, d_v) = jax.lax.scan(keys, start, jnp.arange(len(first_Y)))
    return d_q_BKGLH.astype(q_BKGLH.dtype), _joined(d_k, 2), _joined(d_v, 2), None, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _logits(q_BKGLH, k_BKSH, slopes_KG, rows, sizes, i, j):
    q_places, k_places, q_segments, k_segments = (
        _block(x, at, 1, size) for x, at, size in zip(rows, (i, j, i, j), (*sizes, *sizes), strict=True)
    )
    distance_BLS = sqrt_distance(q_places[:, :, None], k_places[:, None], q_segments[:, :, None], k_segments[:, None])
    bias_BKGLS = slopes_KG[:, :, None, None] * distance_BLS[:, None, None]
    return q_BKGLH.shape[-1] ** -0.5 * _dot("bkglh,bksh->bkgls", q_BKGLH, k_BKSH) - bias_BKGLS


def _dot(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _block(x: jax.Array, index: jax.Array, axis: int, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)


def _joined(x: jax.Array, axis: int) -> jax.Array:
    """Blocks ``[blocks, ...]`` laid behind one another along the axis that they split."""
    shape = (*x.shape[1 : axis + 1], -1, *x.shape[axis + 2 :])
    return jnp.moveaxis(x, 0, axis).reshape(shape)
