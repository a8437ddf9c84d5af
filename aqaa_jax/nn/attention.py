"""Causal grouped-query attention with square-root ALiBi."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aqaa_jax.kernels.blocked import blocked_attention
from aqaa_jax.kernels.context import with_all_keys
from aqaa_jax.kernels.decode import decode_attention
from aqaa_jax.kernels.flash import flash_attention
from aqaa_jax.kernels.places import SMALLEST_SLOPE, Places
from aqaa_jax.nn.alibi import alibi_slopes, causal_distance
from aqaa_jax.nn.kv_cache import write_layer
from aqaa_jax.nn.params import Initializer, fan_in, weight
from aqaa_jax.nn.project import project, project_each
from aqaa_jax.sharding.axes import (
    ACT_HEADS,
    ACT_KV_HEADS,
    ATTENDING,
    EMBED,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LENGTH,
)
from aqaa_jax.sharding.partition import constrain, device, per_shard, split_of

ATTENTIONS = ("auto", "reference", "blocked", "flash")
SHORT = 2048**2  # pairs of a query and a key up to which the array of all logits is the fastest way off a TPU


class CacheSlots(NamedTuple):
    """Where one layer puts and finds keys and values: all layers' arrays, its own index, the new tokens' slots."""

    k: Float[Array, "layers B K S H"]
    v: Float[Array, "layers B K S H"]
    layer: jax.Array
    slots_BL: jax.Array


def places_of(
    attention: str,
    query_positions_BL: Int[Array, "#B L"],
    key_positions_BS: Int[Array, "#B S"],
    query_segments_BL: Int[Array, "#B L"] | None = None,
    key_segments_BS: Int[Array, "#B S"] | None = None,
) -> Places:
    """The ``Places`` of one step, shared by all layers, for ``attention`` (a ``DecoderConfig.attention``).

    "auto" is "flash" on a TPU; elsewhere "reference" for short rows and "blocked" for long ones.
    Raises ``ValueError`` for an unknown name.
    """
    if attention not in ATTENTIONS:
        raise ValueError(f"attention is {attention!r}; expected one of {', '.join(ATTENTIONS)}")
    if attention == "auto":
        short = query_positions_BL.shape[1] * key_positions_BS.shape[1] <= SHORT
        attention = "flash" if device().platform == "tpu" else "reference" if short else "blocked"
    where = (query_positions_BL, key_positions_BS, query_segments_BL, key_segments_BS)
    return Places(*where, causal_distance(*where) if attention == "reference" else None, attention)


def attend(
    q_BLNH: Float[Array, "B L N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    places: Places,
    slopes: Sequence[float] = (),
) -> Float[Array, "B L N H"]:
    """Causal attention with a bias of -slope * sqrt(i - j), by the implementation that ``places`` was made for.


    Blocked and flash run on each device, on its rows, heads and queries. ``slopes``: one for each query head; none:
    the published series. One of 0 is taken for a tiny one, which leaves
    the mask in force.
    """
    slopes_N = _slopes(slopes, q_BLNH.shape[2])
    if places.distance_BLS is not None:
        return grouped_attention(q_BLNH, k_BSKH, v_BSKH, places.distance_BLS, slopes_N)
    kernel = flash_attention if places.attention == "flash" else blocked_attention
    queries, keys = (ATTENDING, LENGTH, ACT_HEADS, HEAD_DIM), (ATTENDING, LENGTH, ACT_KV_HEADS, HEAD_DIM)
    run = per_shard(
        lambda *pieces: with_all_keys(kernel)(*pieces),
        [queries, keys, keys, (ACT_HEADS,), *[(ATTENDING, LENGTH)] * 4],
        queries,
    )
    return run(q_BLNH, k_BSKH, v_BSKH, jnp.asarray(slopes_N), *places.rows(q_BLNH.shape[0]))


def attend_cached(
    q_BLNH: Float[Array, "B L N H"],
    k_BLKH: Float[Array, "B L K H"],
    v_BLKH: Float[Array, "B L K H"],
    places: Places,
    cache: CacheSlots,
    slopes: Sequence[float] = (),
) -> tuple[Float[Array, "B L N H"], CacheSlots]:
    """``attend`` over the tokens in ``cache`` and the new ones, and the cache with these in it.

    A single token under "flash" is one kernel, which reads the layer in place and writes a slot; it sees itself
    even where it is not kept. Everything else writes first, and attends over a copy of the layer.
    """
    if places.attention == "flash" and q_BLNH.shape[1] == 1 and split_of(LENGTH) == 1:
        queries, keys = (ATTENDING, ACT_HEADS, HEAD_DIM), (ATTENDING, ACT_KV_HEADS, HEAD_DIM)
        stored = (None, ATTENDING, ACT_KV_HEADS, None, HEAD_DIM)
        arguments = [queries, keys, keys, stored, stored, None, (ATTENDING,), (ATTENDING,), (ACT_HEADS,)]
        run = per_shard(decode_attention, arguments, (queries, stored, stored))
        positions_B = jnp.broadcast_to(places.query_positions_BL[:, 0], q_BLNH.shape[:1])
        kept_B = (cache.slots_BL[:, 0] < cache.k.shape[3]).astype(jnp.int32)
        new = (x[:, 0] for x in (q_BLNH, k_BLKH, v_BLKH))
        slopes_N = jnp.asarray(_slopes(slopes, q_BLNH.shape[2]))
        out_BNH, k, v = run(*new, cache.k, cache.v, jnp.asarray(cache.layer), positions_B, kept_B, slopes_N)
        return out_BNH[:, None], cache._replace(k=k, v=v)
    k, v = write_layer(cache.k, cache.v, cache.layer, cache.slots_BL, k_BLKH, v_BLKH)
    k_BSKH, v_BSKH = (x[cache.layer].swapaxes(1, 2).astype(q_BLNH.dtype) for x in (k, v))
    return attend(q_BLNH, k_BSKH, v_BSKH, places, slopes), cache._replace(k=k, v=v)


def _slopes(slopes: Sequence[float], heads: int) -> np.ndarray:
    slopes_N = np.asarray(slopes, np.float32) if len(slopes) else alibi_slopes(heads)
    return np.maximum(slopes_N, SMALLEST_SLOPE)


def grouped_attention(
    q_BLNH: Float[Array, "B L N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    distance_BLS: Float[Array, "#B L S"],
    slopes: Float[Array, "N"] | np.ndarray,
) -> Float[Array, "B L N H"]:
    """softmax(q k / sqrt(H) - slope * distance) v; query head n uses key/value head n // (N / K).

    Keys and values are never repeated; logits and softmax are float32 and the weights are rounded to the
    dtype of ``v``. Deliberate differences from the published fallback: the bias stays float32 (there it is
    cast to the activation dtype), and a query that may see nothing (padding) gets the mean of all values,
    not NaN. The layout (heads before length, queries scaled before the product) is the fastest
    of six measured on CPU.
    """
    B, L, N, H = q_BLNH.shape
    K = k_BSKH.shape[2]
    q_BKGLH = (q_BLNH * H**-0.5).reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    slopes_KG = jnp.asarray(slopes, jnp.float32).reshape(K, N // K, 1, 1)
    logits_BKGLS = jnp.einsum("bkglh,bksh->bkgls", q_BKGLH, k_BKSH, preferred_element_type=jnp.float32)
    weights_BKGLS = jax.nn.softmax(logits_BKGLS - slopes_KG * distance_BLS[:, None, None], axis=-1)
    out_BKGLH = jnp.einsum("bkgls,bksh->bkglh", weights_BKGLS.astype(v_BSKH.dtype), v_BKSH)
    return out_BKGLH.transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)


class Attention(nnx.Module):
    """Projections around ``grouped_attention``, without biases (published ``modeling_step1.py``)."""

    def __init__(
        self,
        embed: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        rngs: nnx.Rngs,
        out_init: Initializer | None = None,
        slopes: tuple[float, ...] = (),
        dtype: DTypeLike = jnp.float32,
    ):
        if heads % kv_heads:
            raise ValueError(f"{heads} heads do not divide into {kv_heads} kv_heads")
        if slopes and (len(slopes) != heads or min(slopes) < 0):
            raise ValueError(f"alibi_slopes {slopes}: expected none, or one of at least 0 for each of {heads} heads")
        self.slopes = slopes
        self.wq = weight(rngs, (embed, heads, head_dim), (EMBED, HEADS, HEAD_DIM), fan_in(0), dtype)
        self.wk = weight(rngs, (embed, kv_heads, head_dim), (EMBED, KV_HEADS, HEAD_DIM), fan_in(0), dtype)
        self.wv = weight(rngs, (embed, kv_heads, head_dim), (EMBED, KV_HEADS, HEAD_DIM), fan_in(0), dtype)
        out_init = out_init or fan_in((0, 1))
        self.wo = weight(rngs, (heads, head_dim, embed), (HEADS, HEAD_DIM, EMBED), out_init, dtype)

    def __call__(
        self, x_BLD: Float[Array, "B L D"], places: Places, cache: CacheSlots | None = None
    ) -> tuple[Float[Array, "B L D"], CacheSlots | None]:
        """Attend over ``x_BLD`` itself, or over ``cache`` after the new keys and values went in."""
        q_BLNH, k_BSKH, v_BSKH = project_each(x_BLD, (self.wq, self.wk, self.wv), first=True)
        q_BLNH = constrain(q_BLNH, ATTENDING, LENGTH, ACT_HEADS, HEAD_DIM)
        k_BSKH, v_BSKH = (constrain(x, ATTENDING, LENGTH, ACT_KV_HEADS, HEAD_DIM) for x in (k_BSKH, v_BSKH))
        q_BLNH, k_BSKH, v_BSKH = (checkpoint_name(x, n) for x, n in ((q_BLNH, "q"), (k_BSKH, "k"), (v_BSKH, "v")))
        if cache is None:
            out_BLNH = attend(q_BLNH, k_BSKH, v_BSKH, places, self.slopes)
        else:
            out_BLNH, cache = attend_cached(q_BLNH, k_BSKH, v_BSKH, places, cache, self.slopes)
        out_BLNH = constrain(out_BLNH, ATTENDING, LENGTH, ACT_HEADS, HEAD_DIM)
        return project(out_BLNH, self.wo, in_axes=2), cache
