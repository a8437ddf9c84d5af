"""Feature augmentation for tokenizer training: vocal-tract warping, spectral tilt, SpecAugment masks.

Ours: the published tokenizers come trained. Warping follows Jaitly & Hinton (2013), masks follow Park et al.
(2019, SpecAugment). All act on log-mel features along their last (mel) axis.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def warp_mels(x: Float[Array, "B T M"], factor_B: Float[Array, "B"]) -> Float[Array, "B T M"]:
    """Resample the mel axis: bin ``m`` of the output reads bin ``m * factor`` of the input."""
    M = x.shape[-1]
    at_BM = jnp.clip(jnp.arange(M)[None] * factor_B[:, None], 0, M - 1)
    low_BM = jnp.floor(at_BM).astype(jnp.int32)
    high_BM = jnp.minimum(low_BM + 1, M - 1)
    part_BM = at_BM - low_BM
    # A one-hot matrix product is much faster than a gather along the last axis, and so is its batch form.
    weights_BMm = jax.nn.one_hot(low_BM, M) * (1 - part_BM)[..., None] + jax.nn.one_hot(high_BM, M) * part_BM[..., None]
    return jnp.einsum("btm,bnm->btn", x, weights_BMm)


def warp_factors(key: PRNGKeyArray, rows: int, warp: float) -> Float[Array, "B"]:
    """Uniform in 1 ± ``warp``."""
    return 1.0 + warp * jax.random.uniform(key, (rows,), minval=-1.0, maxval=1.0)


def augment(
    x: Float[Array, "B T M"],
    key: PRNGKeyArray,
    *,
    warp: float = 0.14,
    tilt: float = 0.6,
    frequency_mask: float = 0.15,
    time_mask: int = 3,
    noise: float = 0.1,
) -> Float[Array, "B T M"]:
    """Random warping (factor 1 ± ``warp``), smooth gain curve (amplitude ``tilt`` in feature units), one
    frequency mask (up to ``frequency_mask`` of the bins) and one time mask (up to ``time_mask`` frames) per row,
    masked values set to the row mean, and white noise of deviation ``noise``.
    """
    B, T, M = x.shape
    keys = jax.random.split(key, 7)
    if warp:
        x = warp_mels(x, warp_factors(keys[0], B, warp))
    phases = jnp.linspace(0.0, jnp.pi, M)[None] * jnp.arange(1, 4)[:, None]  # three half-cosines
    gains_B3 = tilt * jax.random.normal(keys[1], (B, 3)) / jnp.arange(1, 4)
    x = x + jnp.einsum("bi,im->bm", gains_B3, jnp.cos(phases))[:, None]
    mean = jnp.mean(x, axis=(1, 2), keepdims=True)
    x = jnp.where(_band(keys[2], keys[3], B, M, frequency_mask * M)[:, None, :], mean, x)
    x = jnp.where(_band(keys[4], keys[5], B, T, float(time_mask))[:, :, None], mean, x)
    return x + noise * jax.random.normal(keys[6], x.shape)


def _band(width_key: jax.Array, start_key: jax.Array, rows: int, size: int, widest: float) -> jax.Array:
    """One random interval per row: bool ``[rows, size]``."""
    width = jax.random.uniform(width_key, (rows, 1)) * widest
    start = jax.random.uniform(start_key, (rows, 1)) * (size - width)
    at = jnp.arange(size)[None]
    return (at >= start) & (at < start + width)
