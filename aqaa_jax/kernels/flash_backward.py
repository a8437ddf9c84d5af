"""The two backward kernels of flash attention: one gathers over keys, the other over queries."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from aqaa_jax.kernels.places import first_and_last, sqrt_distance, visible_blocks
from aqaa_jax.kernels.tile_math import as_columns, dot, for_each, over_lanes
from aqaa_jax.kernels.tiles import LANES


def d_queries(q_BKGLH, k_BKSH, v_BKSH, d_out_BKGLH, log_sum_BKGL, delta_BKGL, slopes_KG, rows, scale, tile):
    """The gradient of the queries; arguments as of ``flash.forward``, ``delta_BKGL`` is the sum of d_out * out."""
    B, K, G, L, H = q_BKGLH.shape
    bounds = first_and_last(visible_blocks(tuple(x[:, 0] for x in rows), tile.queries, tile.keys))

    def seen(b, i, j, first, last):
        return jnp.maximum(jnp.minimum(j, last[b, i]), first[b, i])

    queries = pl.BlockSpec((1, 1, G, tile.queries, H), lambda b, h, i, j, *_: (b, h, 0, i, 0))
    numbers = pl.BlockSpec((1, 1, G, tile.queries), lambda b, h, i, j, *_: (b, h, 0, i))
    keys = pl.BlockSpec((1, 1, tile.keys, H), lambda b, h, i, j, *s: (b, h, seen(b, i, j, *s), 0))
    query_row = pl.BlockSpec((1, 1, tile.queries), lambda b, h, i, j, *_: (b, 0, i))
    key_row = pl.BlockSpec((1, 1, tile.keys), lambda b, h, i, j, *s: (b, 0, seen(b, i, j, *s)))
    column = pltpu.VMEM((tile.queries, LANES), jnp.int32)
    columns = pltpu.VMEM((G, tile.queries, LANES), jnp.float32)
    return pl.pallas_call(
        partial(_d_queries_kernel, scale=scale, unrolled=not tile.interpret),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, L // tile.queries, k_BKSH.shape[2] // tile.keys),
            in_specs=[
                pl.BlockSpec(memory_space=pltpu.SMEM),
                *(query_row, key_row, query_row, key_row),
                *(queries, keys, keys, queries, numbers, numbers),
            ],
            out_specs=queries,
            scratch_shapes=[column, column, columns, columns, pltpu.VMEM((G, tile.queries, H), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct(q_BKGLH.shape, q_BKGLH.dtype),
        compiler_params=tile.compiler_params("parallel", "parallel", "parallel", "arbitrary"),
        interpret=tile.interpret,
        cost_estimate=tile.cost(3, q_BKGLH, k_BKSH),
        name="sqrt_alibi_d_queries",
    )(*bounds, slopes_KG, *rows, q_BKGLH, k_BKSH, v_BKSH, d_out_BKGLH, log_sum_BKGL, delta_BKGL)


def _d_queries_kernel(*refs, scale, unrolled):
    first, last, slopes, q_places, k_places, q_segments, k_segments, q, k, v, d_out, log_sum, delta, *rest = refs
    d_q, q_place_columns, q_segment_columns, log_sums, deltas, d_qs = rest
    b, h, i, j = (pl.program_id(axis) for axis in range(4))
    G, k_size = q.shape[2], k.shape[2]

    @pl.when(j == 0)
    def start():
        q_place_columns[...] = as_columns(q_places[0])
        q_segment_columns[...] = as_columns(q_segments[0])
        d_qs[...] = jnp.zeros_like(d_qs)
        for g in range(G):
            log_sums[g] = as_columns(log_sum[0, 0, g : g + 1])
            deltas[g] = as_columns(delta[0, 0, g : g + 1])

    @pl.when((j >= first[b, i]) & (j <= last[b, i]))
    def add():
        q_place, q_segment = (over_lanes(x[...], k_size) for x in (q_place_columns, q_segment_columns))
        distance = sqrt_distance(q_place, k_places[0], q_segment, k_segments[0])

        def head(g, _):
            logits = dot(q[0, 0, g], k[0, 0], (1, 1)) * (scale * math.log2(math.e)) - slopes[h, g] * distance
            weights = jnp.exp2(logits - over_lanes(log_sums[g], k_size))
            d_weights = dot(d_out[0, 0, g], v[0, 0], (1, 1))
            d_logits = weights * (d_weights - over_lanes(deltas[g], k_size))
            d_qs[g] += dot(d_logits.astype(k.dtype), k[0, 0])

        for_each(G, head, None, unrolled=unrolled)

    @pl.when(j == pl.num_programs(3) - 1)
    def finish():
        d_q[0, 0] = (scale * d_qs[...]).astype(d_q.dtype)


def d_keys_values(q_BKGLH, k_BKSH, v_BKSH, d_out_BKGLH, log_sum_BKGL, delta_BKGL, slopes_KG, rows, scale, tile):
    """The gradients of keys and values, summed over the query heads of a group; arguments as of ``d_queries``.

    Tiles have keys down and queries across: all four products are then of the plain kind, and what belongs to
    a query is a row.
    """
    B, K, G, L, H = q_BKGLH.shape
    visible = visible_blocks(tuple(x[:, 0] for x in rows), tile.queries, tile.keys)
    bounds = first_and_last(visible.swapaxes(1, 2))

    def seen(b, i, j, first, last):
        return jnp.maximum(jnp.minimum(j, last[b, i]), first[b, i])

    queries = pl.BlockSpec((1, 1, G, tile.queries, H), lambda b, h, i, j, *s: (b, h, 0, seen(b, i, j, *s), 0))
    numbers = pl.BlockSpec((1, 1, G, tile.queries), lambda b, h, i, j, *s: (b, h, 0, seen(b, i, j, *s)))
    keys = pl.BlockSpec((1, 1, tile.keys, H), lambda b, h, i, j, *_: (b, h, i, 0))
    query_row = pl.BlockSpec((1, 1, tile.queries), lambda b, h, i, j, *s: (b, 0, seen(b, i, j, *s)))
    key_row = pl.BlockSpec((1, 1, tile.keys), lambda b, h, i, j, *_: (b, 0, i))
    column = pltpu.VMEM((tile.keys, LANES), jnp.int32)
    gathered = pltpu.VMEM((tile.keys, H), jnp.float32)
    return pl.pallas_call(
        partial(_d_keys_values_kernel, scale=scale, unrolled=not tile.interpret),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, k_BKSH.shape[2] // tile.keys, L // tile.queries),
            in_specs=[
                pl.BlockSpec(memory_space=pltpu.SMEM),
                *(query_row, key_row, query_row, key_row),
                *(queries, keys, keys, queries, numbers, numbers),
            ],
            out_specs=[keys, keys],
            scratch_shapes=[column, column, gathered, gathered],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k_BKSH, v_BKSH)],
        compiler_params=tile.compiler_params("parallel", "parallel", "parallel", "arbitrary"),
        interpret=tile.interpret,
        cost_estimate=tile.cost(4, q_BKGLH, k_BKSH),
        name="sqrt_alibi_d_keys_values",
    )(*bounds, slopes_KG, *rows, q_BKGLH, k_BKSH, v_BKSH, d_out_BKGLH, log_sum_BKGL, delta_BKGL)


def _d_keys_values_kernel(*refs, scale, unrolled):
    first, last, slopes, q_places, k_places, q_segments, k_segments, q, k, v, d_out, log_sum, delta, *rest = refs
    d_k, d_v, k_place_columns, k_segment_columns, d_ks, d_vs = rest
    b, h, i, j = (pl.program_id(axis) for axis in range(4))
    _, _, G, q_size, _ = q.shape

    @pl.when(j == 0)
    def start():
        k_place_columns[...] = as_columns(k_places[0])
        k_segment_columns[...] = as_columns(k_segments[0])
        d_ks[...] = jnp.zeros_like(d_ks)
        d_vs[...] = jnp.zeros_like(d_vs)

    @pl.when((j >= first[b, i]) & (j <= last[b, i]))
    def add():
        k_place, k_segment = (over_lanes(x[...], q_size) for x in (k_place_columns, k_segment_columns))
        distance = sqrt_distance(q_places[0], k_place, q_segments[0], k_segment)

        def head(g, _):
            logits = dot(k[0, 0], q[0, 0, g], (1, 1)) * (scale * math.log2(math.e)) - slopes[h, g] * distance
            weights = jnp.exp2(logits - log_sum[0, 0, pl.ds(g, 1)])
            d_vs[...] += dot(weights.astype(v.dtype), d_out[0, 0, g])
            d_weights = dot(v[0, 0], d_out[0, 0, g], (1, 1))
            d_logits = weights * (d_weights - delta[0, 0, pl.ds(g, 1)])
            d_ks[...] += dot(d_logits.astype(q.dtype), q[0, 0, g])

        for_each(G, head, None, unrolled=unrolled)

    @pl.when(j == pl.num_programs(3) - 1)
    def finish():
        d_k[0, 0] = (scale * d_ks[...]).astype(d_k.dtype)
        d_v[0, 0] = d_vs[...].astype(d_v.dtype)
