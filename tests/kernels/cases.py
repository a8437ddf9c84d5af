"""Cases of attention shared by the tests of its implementations, and how to compare two of them."""

import jax
import jax.numpy as jnp
import numpy as np

from aqaa_jax.nn.alibi import alibi_slopes, segment_positions


def inputs(B, L, N, K, H, dtype=jnp.float32, S=None, seed=0):
    """Random queries, keys and values, and the gradient that comes back."""
    shapes = ((B, L, N, H), (B, S or L, K, H), (B, S or L, K, H), (B, L, N, H))
    keys = jax.random.split(jax.random.key(seed), 4)
    return tuple(jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True))


def packed(B, L):
    """Segments of rows: whole, packed in three with padding behind, padded in front, all padding."""
    rows = np.ones((4, L), np.int32)
    rows[1] = np.repeat([1, 2, 3, 0], [L // 3, L // 2, L // 12, L - L // 3 - L // 2 - L // 12])
    rows[2, : L // 4] = 0
    rows[3] = 0
    return jnp.asarray(rows[np.arange(B) % 4])


def rows_of(segments_BL):
    positions = segment_positions(segments_BL)
    return positions, positions, segments_BL, segments_BL


def whole(B, L, S=None):
    """The rows of ``L`` queries behind ``S - L`` earlier keys, one segment."""
    S = S or L
    q, k = (jnp.tile(jnp.arange(first, S), (B, 1)) for first in (S - L, 0))
    return q, k, jnp.ones_like(q), jnp.ones_like(k)


def truth(q, k, v, slopes, q_places, k_places, q_segments, k_segments):
    """The written formula in float64, with zeros where a query sees nothing."""
    (N, H), K = q.shape[2:], k.shape[2]
    k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
    offset = q_places[:, None, :, None] - k_places[:, None, None]
    seen = (offset >= 0) & (q_segments[:, None, :, None] == k_segments[:, None, None]) & (k_segments > 0)[:, None, None]
    bias = jnp.asarray(slopes, jnp.float64)[:, None, None] * jnp.sqrt(jnp.maximum(offset, 0).astype(jnp.float64))
    logits = jnp.where(seen, jnp.einsum("blnh,bsnh->bnls", q, k) / H**0.5 - bias, -1e9)
    weights = jax.nn.softmax(logits, axis=-1) * seen.any(-1, keepdims=True)
    return jnp.einsum("bnls,bsnh->blnh", weights, v)


def value_and_gradients(attention, q, k, v, g, slopes, rows):
    """Output and gradients of q, k, v for the cotangent ``g``."""

    def run(q, k, v, g):
        out, back = jax.vjp(lambda *x: attention(*x, jnp.asarray(slopes), *rows), q, k, v)
        return out, *back(g.astype(out.dtype))

    return jax.jit(run)(q, k, v, g)


def check(attention, case, rows, limit):
    """Every result within ``limit`` of the formula in float64, in norm, and no single one twice as far off."""
    slopes = alibi_slopes(case[0].shape[2])
    ours = value_and_gradients(attention, *case, slopes, rows)
    with jax.enable_x64(True):
        theirs = value_and_gradients(truth, *(x.astype(jnp.float64) for x in case), slopes, rows)
    for name, a, b in zip(("out", "d_q", "d_k", "d_v"), ours, theirs, strict=True):
        b = np.asarray(b)  # jax would round it to float32 here
        error = np.asarray(a, np.float64) - b
        relative = np.linalg.norm(error) / np.linalg.norm(b)
        largest = np.abs(error).max() / np.abs(b).max()
        assert relative <= limit, f"{name}: relative error {relative:.1e}, limit {limit:.0e}"
        assert largest <= 2 * limit, f"{name}: largest error {largest:.1e} of the largest value, limit {2 * limit:.0e}"
