"""Flash attention with the sqrt-ALiBi bias, for TPUs: the forward kernel and its derivative."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from aqaa_jax.kernels.flash_backward import d_keys_values, d_queries
from aqaa_jax.kernels.places import FORBIDDEN, first_and_last, padded, sqrt_distance, visible_blocks
from aqaa_jax.kernels.tile_math import LOWEST, as_columns, dot, for_each, over_lanes, put_lane
from aqaa_jax.kernels.tiles import LANES, Tiles, tiles

_HIDDEN = -1e9  # below any logit of a visible key, above those of a forbidden one


def flash_attention(
    q_BLNH: Float[Array, "B L N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    slopes_N: Float[Array, "N"],
    *rows: jax.Array,
    tile: Tiles | None = None,
) -> Float[Array, "B L N H"]:
    """What ``kernels.blocked.blocked_attention`` computes, with the same arguments, by Pallas kernels.

    ``q``, ``k`` and ``v`` of one dtype (bfloat16, or float32: six times slower on the matrix unit); logits, softmax
    and sums float32. Head sizes are padded to 64 or a multiple of 128, lengths to whole blocks. All query heads
    of a key/value head are one program, so that the tile of square roots is computed once for them.
    """
    B, L, N, H = q_BLNH.shape
    S, K = k_BSKH.shape[1:3]
    tile = (tile or tiles()).within(L, S)
    sizes, wide = (tile.queries, tile.keys), 64 if H <= 64 else LANES
    rows = tuple(padded(x, 1, size)[:, None] for x, size in zip(rows, (*sizes, *sizes), strict=True))
    q_BKGLH = padded(padded(q_BLNH.reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4), 3, tile.queries), 4, wide)
    k_BKSH, v_BKSH = (padded(padded(x.swapaxes(1, 2), 2, tile.keys), 3, wide) for x in (k_BSKH, v_BSKH))
    slopes_KG = slopes_N.reshape(K, N // K) * math.log2(math.e)
    out_BKGLH: jax.Array = _attend(q_BKGLH, k_BKSH, v_BKSH, slopes_KG, rows, H**-0.5, tile)
    return out_BKGLH[..., :L, :H].transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q_BKGLH, k_BKSH, v_BKSH, slopes_KG, rows, scale, tile) -> jax.Array:
    return forward(q_BKGLH, k_BKSH, v_BKSH, slopes_KG, rows, scale, tile)[0]


def _attend_fwd(q_BKGLH, k_BKSH, v_BKSH, slopes_KG, rows, scale, tile):
    out_BKGLH, log_sum_BKGL = forward(q_BKGLH, k_BKSH, v_BKSH, slopes_KG, rows, scale, tile)
    out_BKGLH = checkpoint_name(out_BKGLH, "attention_out")
    log_sum_BKGL = checkpoint_name(log_sum_BKGL, "attention_lse")
    return out_BKGLH, (q_BKGLH, k_BKSH, v_BKSH, slopes_KG, rows, out_BKGLH, log_sum_BKGL)


def _attend_bwd(scale, tile, kept, d_out_BKGLH):
    q_BKGLH, k_BKSH, v_BKSH, slopes_KG, rows, out_BKGLH, log_sum_BKGL = kept
    delta_BKGL = jnp.sum(d_out_BKGLH.astype(jnp.float32) * out_BKGLH.astype(jnp.float32), -1)
    arguments = (q_BKGLH, k_BKSH, v_BKSH, d_out_BKGLH, log_sum_BKGL, delta_BKGL, slopes_KG, rows, scale, tile)
    return d_queries(*arguments), *d_keys_values(*arguments), None, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def forward(q_BKGLH, k_BKSH, v_BKSH, slopes_KG, rows, scale, tile):
    """The output and ``log_sum_BKGL``, the logarithm to base 2 of the sum of weights (``FORBIDDEN``: none visible).

    Lengths are whole blocks; ``slopes_KG`` are times log2(e); ``rows`` are ``[B, 1, length]``.
    """
    B, K, G, L, H = q_BKGLH.shape
    bounds = first_and_last(visible_blocks(tuple(x[:, 0] for x in rows), tile.queries, tile.keys))
    grid = (B, K, L // tile.queries, k_BKSH.shape[2] // tile.keys)

    def seen(b, i, j, first, last):
        return jnp.maximum(jnp.minimum(j, last[b, i]), first[b, i])

    queries = pl.BlockSpec((1, 1, G, tile.queries, H), lambda b, h, i, j, *_: (b, h, 0, i, 0))
    keys = pl.BlockSpec((1, 1, tile.keys, H), lambda b, h, i, j, *s: (b, h, seen(b, i, j, *s), 0))
    query_row = pl.BlockSpec((1, 1, tile.queries), lambda b, h, i, j, *_: (b, 0, i))
    key_row = pl.BlockSpec((1, 1, tile.keys), lambda b, h, i, j, *s: (b, 0, seen(b, i, j, *s)))
    column = pltpu.VMEM((tile.queries, LANES), jnp.int32)
    sums = pltpu.VMEM((G, tile.queries, LANES), jnp.float32)
    return pl.pallas_call(
        partial(_forward_kernel, scale=scale * math.log2(math.e), unrolled=not tile.interpret),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=[
                pl.BlockSpec(memory_space=pltpu.SMEM),
                *(query_row, key_row, query_row, key_row),
                *(queries, keys, keys),
            ],
            out_specs=[queries, pl.BlockSpec((1, 1, G, tile.queries), lambda b, h, i, j, *_: (b, h, 0, i))],
            scratch_shapes=[column, column, sums, sums, pltpu.VMEM((G, tile.queries, H), jnp.float32)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q_BKGLH.shape, q_BKGLH.dtype),
            jax.ShapeDtypeStruct((B, K, G, L), jnp.float32),
        ],
        compiler_params=tile.compiler_params("parallel", "parallel", "parallel", "arbitrary"),
        interpret=tile.interpret,
        cost_estimate=tile.cost(2, q_BKGLH, k_BKSH),
        name="sqrt_alibi_forward",
    )(*bounds, slopes_KG, *rows, q_BKGLH, k_BKSH, v_BKSH)


def _forward_kernel(*refs, scale, unrolled):
    """One block of keys for one block of queries of all heads of a group; ``tops`` and ``sums`` alike in all lanes.

    ``sums`` holds partial sums in its lanes.
    """
    first, last, slopes, q_places, k_places, q_segments, k_segments, q, k, v, *rest = refs
    out, log_sum, q_place_columns, q_segment_columns, tops, sums, outs = rest
    b, h, i, j = (pl.program_id(axis) for axis in range(4))
    _, _, G, q_size, H = q.shape
    k_size = k.shape[2]

    @pl.when(j == 0)
    def start():
        q_place_columns[...] = as_columns(q_places[0])
        q_segment_columns[...] = as_columns(q_segments[0])
        tops[...] = jnp.full_like(tops, LOWEST)
        sums[...] = jnp.zeros_like(sums)
        outs[...] = jnp.zeros_like(outs)

    @pl.when((j >= first[b, i]) & (j <= last[b, i]))
    def add():
        columns = (over_lanes(x[...], k_size) for x in (q_place_columns, q_segment_columns))
        q_place, q_segment = columns
        distance = sqrt_distance(q_place, k_places[0], q_segment, k_segments[0])

        def head(g, _):
            logits = dot(q[0, 0, g], k[0, 0], (1, 1)) * scale - slopes[h, g] * distance
            top = tops[g]
            new = jnp.maximum(top, jnp.max(logits, axis=1, keepdims=True))
            weights = jnp.exp2(logits - over_lanes(new, k_size))
            shrink = jnp.exp2(top - new)
            tops[g] = new
            sums[g] = shrink * sums[g] + sum(weights[:, at : at + LANES] for at in range(0, k_size, LANES))
            outs[g] = over_lanes(shrink, H) * outs[g] + dot(weights.astype(v.dtype), v[0, 0])

        for_each(G, head, None, unrolled=unrolled)

    @pl.when(j == pl.num_programs(3) - 1)
    def finish():
        def head(g, carry):
            all_tops, totals = carry
            seen, total = tops[g] > _HIDDEN, jnp.maximum(jnp.sum(sums[g], axis=1, keepdims=True), 1e-30)
            share = over_lanes(jnp.where(seen, 1.0 / jnp.broadcast_to(total, seen.shape), 0.0), H)
            out[0, 0, g] = (outs[g] * share).astype(out.dtype)
            return put_lane(all_tops, g, tops[g]), put_lane(totals, g, total)

        # One lane for each head: the logarithm and the transpose are then made once for all.
        nothing = jnp.zeros((q_size, LANES))
        all_tops, totals = for_each(G, head, (nothing, nothing + 1), unrolled=unrolled)
        log_sums = jnp.where(all_tops > _HIDDEN, all_tops + jnp.log2(totals), FORBIDDEN)
        log_sum[0, 0] = log_sums.T[:G]
