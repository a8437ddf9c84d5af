"""One new token for every row of a key/value cache: attention over the cache, and its entry into it, in one kernel."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from aqaa_jax.kernels.tile_math import dot, for_each, over_lanes
from aqaa_jax.kernels.tiles import LANES, Tiles, tiles

KEYS = 4096  # of all heads of a row together, in a block: 1 MiB of bfloat16 for head size 128
_ROWS = 16  # slots that are written back together: whole tiles of bfloat16 and of float32


def decode_attention(
    q_BNH: Float[Array, "B N H"],
    k_BKH: Float[Array, "B K H"],
    v_BKH: Float[Array, "B K H"],
    k_XBKSH: Float[Array, "X B K S H"],
    v_XBKSH: Float[Array, "X B K S H"],
    layer: Int[Array, ""],
    positions_B: Int[Array, "B"],
    kept_B: Int[Array, "B"],
    slopes_N: Float[Array, "N"],
    *,
    tile: Tiles | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Attention of one token of each row to itself and to slots 0 ... position - 1 of one layer of the cache.

    Returns ``out_BNH`` and both caches with the new key and value in slot ``positions_B`` of the rows with
    ``kept_B`` not 0. The caches are not copied: blocks of keys are read where they lie, up to a row's position,
    and only the 16 slots around the new one are written (donate them, or XLA must copy them before).
    A position from S on keeps nothing. Logits, softmax and sums are float32; the cache may be of another dtype than q.
    """
    (B, N, H), K = q_BNH.shape, k_XBKSH.shape[2]
    tile, G, dtype = tile or tiles(), N // K, k_XBKSH.dtype
    q_BKGH = q_BNH.reshape(B, K, G, H).astype(dtype)
    k_BK1H, v_BK1H = (x.astype(dtype).reshape(B, K, 1, H) for x in (k_BKH, v_BKH))
    slopes_KG = jnp.broadcast_to(slopes_N.reshape(K, G, 1) * math.log2(math.e), (K, G, LANES))
    out_BKGH, k_XBKSH, v_XBKSH = _call(
        layer, positions_B, kept_B, slopes_KG, q_BKGH, k_BK1H, v_BK1H, k_XBKSH, v_XBKSH, tile
    )
    return out_BKGH.reshape(B, N, H).astype(q_BNH.dtype), k_XBKSH, v_XBKSH


def _call(layer, positions_B, kept_B, slopes_KG, q_BKGH, k_BKH, v_BKH, k_XBKSH, v_XBKSH, tile):
    (B, K, G, H), S, itemsize = q_BKGH.shape, k_XBKSH.shape[3], q_BKGH.dtype.itemsize
    size = min(max(LANES, KEYS // K // LANES * LANES), -(-S // LANES) * LANES)
    blocks = jnp.minimum(jnp.max(positions_B), S - 1) // size + 1  # no row has more

    def block(b, j, layer, positions, kept):
        return layer[0], b, 0, jnp.minimum(j, jnp.minimum(positions[b], S - 1) // size), 0

    def written(b, j, layer, positions, kept):
        return layer[0], b, 0, jnp.minimum(positions[b], S - 1) // _ROWS, 0

    row = pl.BlockSpec((1, K, G, H), lambda b, j, *_: (b, 0, 0, 0))
    token = pl.BlockSpec((1, K, 1, H), lambda b, j, *_: (b, 0, 0, 0))
    keys = pl.BlockSpec((1, 1, K, size, H), block)
    slots = pl.BlockSpec((1, 1, K, _ROWS, H), written)
    numbers = pltpu.VMEM((K, G, LANES), jnp.float32)
    return pl.pallas_call(
        partial(_kernel, scale=H**-0.5 * math.log2(math.e), capacity=S, unrolled=not tile.interpret),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(B, blocks),
            in_specs=[pl.BlockSpec((K, G, LANES), lambda b, j, *_: (0, 0, 0)), row, token, token, keys, keys],
            out_specs=[row, slots, slots],
            scratch_shapes=[numbers, numbers, pltpu.VMEM((K, G, H), jnp.float32)],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_BKGH, k_XBKSH, v_XBKSH)],
        input_output_aliases={7: 1, 8: 2},
        compiler_params=tile.compiler_params("parallel", "arbitrary"),
        cost_estimate=pl.CostEstimate(
            flops=4 * B * K * G * S * H,
            bytes_accessed=2 * itemsize * B * K * (S + G) * H,
            transcendentals=B * K * G * S,
        ),
        interpret=tile.interpret,
        name="sqrt_alibi_decode",
    )(jnp.reshape(layer, (1,)), positions_B, kept_B, slopes_KG, q_BKGH, k_BKH, v_BKH, k_XBKSH, v_XBKSH)


def _kernel(*refs, scale, capacity, unrolled):
    _, positions, kept, slopes, q, k_new, v_new, k, v, out, k_slots, v_slots, tops, sums, outs = refs
    b, j = pl.program_id(0), pl.program_id(1)
    _, K, _, H = q.shape
    size = k.shape[3]
    position = positions[b]
    last = jnp.minimum(position, capacity - 1) // size

    @pl.when(j == 0)
    def itself():
        both = q[0].astype(jnp.float32) * k_new[0].astype(jnp.float32)
        tops[...] = jnp.broadcast_to(scale * jnp.sum(both, axis=-1, keepdims=True), tops.shape)
        sums[...] = jnp.ones_like(sums)
        outs[...] = jnp.broadcast_to(v_new[0].astype(jnp.float32), outs.shape)

    @pl.when(j <= last)
    def add():
        slots_1S = j * size + jax.lax.broadcasted_iota(jnp.int32, (1, size), 1)
        offset_1S = position - slots_1S
        distance_1S = jnp.sqrt(jnp.maximum(offset_1S, 0).astype(jnp.float32))

        def head(h, _):
            values = v[0, 0, h]
            if capacity % size:  # what lies behind the end may be anything, and 0 times that is not always 0
                slots_S1 = j * size + jax.lax.broadcasted_iota(jnp.int32, (size, 1), 0)
                values = jnp.where(slots_S1 < capacity, values, jnp.zeros_like(values))
            logits = dot(q[0, h], k[0, 0, h], (1, 1)) * scale - over_lanes(slopes[h], size) * distance_1S
            logits = jnp.where(offset_1S > 0, logits, -1e30)
            new = jnp.maximum(tops[h], jnp.max(logits, axis=1, keepdims=True))
            weights, shrink = jnp.exp2(logits - over_lanes(new, size)), jnp.exp2(tops[h] - new)
            tops[h] = new
            sums[h] = shrink * sums[h] + jnp.sum(weights, axis=1, keepdims=True)
            outs[h] = over_lanes(shrink, H) * outs[h] + dot(weights.astype(values.dtype), values)

        for_each(K, head, None, unrolled=unrolled)

    @pl.when(j == last)
    def keep():
        slot = jnp.minimum(position, capacity - 1) % size
        around = pl.ds(pl.multiple_of(slot // _ROWS * _ROWS, _ROWS), _ROWS)
        here = jax.lax.broadcasted_iota(jnp.int32, (K, _ROWS, H), 1) == slot % _ROWS
        here = here & (kept[b] != 0) & (position < capacity)
        k_slots[0, 0] = jnp.where(here, k_new[0], k[0, 0, :, around])
        v_slots[0, 0] = jnp.where(here, v_new[0], v[0, 0, :, around])

    @pl.when(j == pl.num_programs(1) - 1)
    def finish():
        for_each(K, lambda h, _: _store(out, h, outs[h] / over_lanes(sums[h], H)), None, unrolled=unrolled)


def _store(out, h, x):
    out[0, h] = x.astype(out.dtype)
