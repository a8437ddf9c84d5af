"""Keys and values of the tokens seen so far: a plain pytree of fixed size."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from aqaa_jax.sharding.axes import ACT_KV_HEADS, ATTENDING, HEAD_DIM, LENGTH
from aqaa_jax.sharding.partition import constrain


class KVCache(NamedTuple):
    """Slot s of a row holds the key and value of the row's token at position s.

    Rows are dense from slot 0 on and grow by themselves, so prompts of different lengths decode together:
    a prompt is padded on the *right*, its padding is not stored. The first axis of ``k`` and ``v`` is the layer;
    heads come before slots, so that the keys of one head lie together whatever the number of heads (a TPU holds
    the last two axes in tiles). ``length_B`` counts the tokens stored. Slots past it hold nothing; no query sees
    them, because a query sees no later position.
    """

    k: Float[Array, "layers B K S H"]
    v: Float[Array, "layers B K S H"]
    length_B: Int[Array, "B"]


def empty_cache(
    layers: int, batch: int, capacity: int, kv_heads: int, head_dim: int, dtype: DTypeLike = jnp.float32
) -> KVCache:
    """A cache with room for ``capacity`` tokens in every row."""
    shape = (layers, batch, kv_heads, capacity, head_dim)
    k, v = (_pinned(jnp.zeros(shape, dtype)) for _ in "kv")  # two arrays: a buffer cannot be donated twice
    return KVCache(k, v, jnp.zeros((batch,), jnp.int32))


def new_slots(length_B: Int[Array, "B"], real_BL: Array | None, L: int, capacity: int) -> Int[Array, "B L"]:
    """The slot of each of ``L`` new tokens; padding gets ``capacity``, a slot that does not exist."""
    slots_BL = length_B[:, None] + jnp.arange(L, dtype=jnp.int32)
    return slots_BL if real_BL is None else jnp.where(real_BL, slots_BL, capacity)


def write_layer(
    k_XBKSH: jax.Array, v_XBKSH: jax.Array, layer: jax.Array, slots_BL: jax.Array, k_BLKH: jax.Array, v_BLKH: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """All layers' keys and values with those of one layer's new tokens put in; slots past the end are dropped."""
    rows_B1 = jnp.arange(slots_BL.shape[0])[:, None]
    k_XBKSH = k_XBKSH.at[layer, rows_B1, :, slots_BL].set(k_BLKH.astype(k_XBKSH.dtype), mode="drop")
    v_XBKSH = v_XBKSH.at[layer, rows_B1, :, slots_BL].set(v_BLKH.astype(v_XBKSH.dtype), mode="drop")
    return _pinned(k_XBKSH), _pinned(v_XBKSH)


def _pinned(x_XBKSH: jax.Array) -> jax.Array:
    return constrain(x_XBKSH, None, ATTENDING, ACT_KV_HEADS, LENGTH, HEAD_DIM)
