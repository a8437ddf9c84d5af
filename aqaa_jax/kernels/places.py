"""Where queries and keys stand: the one thing from which bias and mask are computed."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Distance of a forbidden pair: even the smallest slope times this drowns any logit, yet stays finite.
FORBIDDEN = 1e30
# A slope of 0 would lift the mask with the bias; this one moves no logit and still drowns a forbidden pair.
SMALLEST_SLOPE = 1e-20
_LATE = 2**30  # a position after all others


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Places:
    """Positions and segments of queries and keys, and which implementation of attention reads them.

    A key is visible to a query if it is not later and, where segments are given, of the same segment and not
    padding (segment 0). ``distance_BLS`` is there for ``attention == "reference"`` alone, which takes bias and
    mask as one array made once for all layers; the others compute them block by block.
    """

    query_positions_BL: Int[Array, "#B L"]
    key_positions_BS: Int[Array, "#B S"]
    query_segments_BL: Int[Array, "#B L"] | None = None
    key_segments_BS: Int[Array, "#B S"] | None = None
    distance_BLS: Float[Array, "#B L S"] | None = None
    attention: str = field(default="reference", metadata={"static": True})

    def rows(self, batch: int) -> tuple[jax.Array, ...]:
        """Query positions, key positions, query segments, key segments: int32 ``[batch, ...]``; none given: ones."""
        q, k = self.query_positions_BL, self.key_positions_BS
        q_segments = jnp.ones_like(q) if self.query_segments_BL is None else self.query_segments_BL
        k_segments = jnp.ones_like(k) if self.key_segments_BS is None else self.key_segments_BS
        return tuple(jnp.broadcast_to(x.astype(jnp.int32), (batch, x.shape[1])) for x in (q, k, q_segments, k_segments))


def sqrt_distance(
    query_positions: jax.Array,
    key_positions: jax.Array,
    query_segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
) -> jax.Array:
    """sqrt(i - j) where a query may see a key, ``FORBIDDEN`` elsewhere; float32, of the shape they broadcast to."""
    offset = query_positions - key_positions
    visible = offset >= 0
    if query_segments is not None and key_segments is not None:
        visible &= (query_segments == key_segments) & (key_segments != 0)
    return jnp.where(visible, jnp.sqrt(jnp.maximum(offset, 0).astype(jnp.float32)), FORBIDDEN)


def padded(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """``x`` with zeros behind its end along ``axis``, up to the next multiple: padding, if it holds segments."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    return jnp.pad(x, [(0, missing if a == axis else 0) for a in range(x.ndim)])


def visible_blocks(rows: tuple[jax.Array, ...], query_block: int, key_block: int) -> jax.Array:
    """``[B, query blocks, key blocks]``: False where no query of a block can see any key of the other.

    Judged by the smallest and largest position and segment of a block, so True may be said of a pair of blocks in
    which packing hides everything. ``rows`` are those of ``Places.rows``, padded to whole blocks.
    """
    q_positions, k_positions, q_segments, k_segments = rows

    def ends(x, real, block, nothing):
        x, real = (a.reshape(a.shape[0], -1, block) for a in (x, real))
        low, high = jnp.where(real, x, nothing), jnp.where(real, x, -nothing)
        return low.min(-1), high.max(-1)

    q_real, k_real = q_segments != 0, k_segments != 0
    _, q_last = ends(q_positions, q_real, query_block, _LATE)
    k_first, _ = ends(k_positions, k_real, key_block, _LATE)
    q_low, q_high = ends(q_segments, q_real, query_block, _LATE)
    k_low, k_high = ends(k_segments, k_real, key_block, _LATE)
    meet = (q_low[:, :, None] <= k_high[:, None]) & (k_low[:, None] <= q_high[:, :, None])
    return meet & (q_last[:, :, None] >= k_first[:, None])


def first_and_last(seen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of the last axis, the first and the last True, int32; 0 and -1 where there is none."""
    n = seen.shape[-1]
    first, last = jnp.argmax(seen, -1), n - 1 - jnp.argmax(seen[..., ::-1], -1)
    return first.astype(jnp.int32), jnp.where(seen.any(-1), last, -1).astype(jnp.int32)
