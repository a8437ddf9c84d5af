"""Rows split over devices: keys gathered to every query, and a placement that gives all devices equal work."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from aqaa_jax.sharding.axes import ACT_EMBED, BATCH, LENGTH
from aqaa_jax.sharding.partition import by_hand_axes, mesh_axes, per_shard, split_of

Attend = Callable[..., jax.Array]


def with_all_keys(attend: Attend) -> Attend:
    """``attend(q, k, v, slopes, *rows)`` of a device's own queries over the keys of all devices of its row.

    To be run in ``per_shard``. Where rows are not split it is ``attend`` itself. Keys and values are gathered once
    for each layer, not passed around a ring: with grouped heads they are a sixth or less of the queries (12 heads
    to a group), so the gathered copy is small and its transfer takes a few percent of the time of the products.
    The gradient of a gather is a reduce-scatter. Rows placed by ``zigzag`` are put in order, so that the keys a
    block of queries sees lie together and all others can be skipped.
    """
    axes = mesh_axes(LENGTH)
    if not axes:
        return attend

    def run(q_BLNH, k_BSKH, v_BSKH, slopes_N, q_positions, k_positions, q_segments, k_segments):
        def whole(x):
            return _in_order(jax.lax.all_gather(x, axes, axis=1, tiled=True))

        return attend(
            q_BLNH,
            whole(k_BSKH),
            whole(v_BSKH),
            slopes_N,
            *(q_positions, whole(k_positions), q_segments, whole(k_segments)),
        )

    return run


def zigzag_order(L: int) -> np.ndarray | None:
    """Where the tokens of a row of ``L`` come from when every device is to have equal work; None: stay as they are.

    Of ``2 n`` chunks device ``i`` of ``n`` gets the ``i``-th from the start and the ``i``-th from the end: under a
    causal mask the work of a chunk grows with its place, and every such pair adds up to the same. Rows that are
    not split, those that do not divide into ``2 n`` chunks and those that are already pieces here stay as they are
    (the last device then has most to do).
    """
    n = split_of(LENGTH)
    if n == 1 or L % (2 * n) or by_hand_axes(LENGTH):
        return None
    return np.arange(L).reshape(2 * n, -1)[_chunks(n)].reshape(-1)


def zigzag_back(x_BLD: jax.Array) -> jax.Array:
    """The rows of ``x_BLD``, placed by ``zigzag_order``, in their own order: every device sends both its chunks."""
    axes, n = mesh_axes(LENGTH), split_of(LENGTH)
    # A device holds one chunk of even number and one of odd; the natural owner of chunk c is device c // 2.
    pairs = _chunks(n).reshape(n, 2)
    sends = [[(i, int(next(c for c in pair if c % 2 == odd)) // 2) for i, pair in enumerate(pairs)] for odd in (0, 1)]

    def exchange(x_BLD):
        first, second = jnp.split(x_BLD, 2, axis=1)
        straight = jax.lax.axis_index(axes) % 2 == 0
        even, odd = jnp.where(straight, first, second), jnp.where(straight, second, first)
        return jnp.concatenate([jax.lax.ppermute(x, axes, s) for x, s in zip((even, odd), sends, strict=True)], axis=1)

    places = (BATCH, LENGTH, ACT_EMBED)
    return per_shard(exchange, [places], places)(x_BLD)


def _chunks(n: int) -> np.ndarray:
    """The chunk numbers in the order in which ``n`` devices hold them."""
    return np.stack([np.arange(n), 2 * n - 1 - np.arange(n)], axis=1).reshape(-1)


def _in_order(x_BS: jax.Array) -> jax.Array:
    """Keys gathered from devices that were placed by ``zigzag_order``, in their own order."""
    n = split_of(LENGTH)
    if x_BS.shape[1] % (2 * n):
        return x_BS
    chunks = jnp.split(x_BS, 2 * n, axis=1)
    return jnp.concatenate([chunks[i] for i in np.argsort(_chunks(n))], axis=1)
