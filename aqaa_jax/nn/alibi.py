"""Square-root ALiBi: the only position signal of Step1."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from aqaa_jax.kernels.places import sqrt_distance


def alibi_slopes(heads: int) -> Float[np.ndarray, "N"]:
    """The positive slope of every query head, float32, in the published order.

    With n the largest power of two up to ``heads``: 2^(-8k/n) for k = 1 ... n, then, for the remaining
    heads, 2^(-4k/n) for odd k. Raises ``ValueError`` for ``heads`` < 1.
    """
    if heads < 1:
        raise ValueError(f"heads is {heads}; expected a positive number")
    n = 2 ** (heads.bit_length() - 1)
    exponents = [-8.0 * k / n for k in range(1, n + 1)] + [-4.0 * (2 * j - 1) / n for j in range(1, heads - n + 1)]
    return np.exp2(np.asarray(exponents)).astype(np.float32)


def causal_distance(
    query_positions_BL: Int[Array, "B L"],
    key_positions_BS: Int[Array, "B S"],
    query_segments_BL: Int[Array, "B L"] | None = None,
    key_segments_BS: Int[Array, "B S"] | None = None,
) -> Float[Array, "B L S"]:
    """sqrt(i - j) where query i may see key j, ``FORBIDDEN`` elsewhere: bias and mask in one array.

    A key is visible if it is not later and, where segments are given, of the same segment and not padding
    (segment 0). The bias of head h is ``-slope_h * distance``; it is the same for all heads and layers up
    to that factor, so the array with a head axis never needs to exist outside a fused kernel.
    """
    queries_BL1, keys_B1S = query_positions_BL[:, :, None], key_positions_BS[:, None]
    if query_segments_BL is None or key_segments_BS is None:
        return sqrt_distance(queries_BL1, keys_B1S)
    return sqrt_distance(queries_BL1, keys_B1S, query_segments_BL[:, :, None], key_segments_BS[:, None])


def segment_positions(segment_ids_BL: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Place of every token in its segment: 0, 1, ... from each change of the segment id on."""
    L = segment_ids_BL.shape[1]
    index_L = jnp.arange(L, dtype=jnp.int32)
    changed_BL = segment_ids_BL != jnp.roll(segment_ids_BL, 1, axis=1)
    start_BL = jax.lax.cummax(jnp.where(changed_BL.at[:, 0].set(True), index_L, 0), axis=1)
    return index_L - start_BL
