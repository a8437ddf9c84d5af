"""Choosing the next token: pure, batched, with explicit keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from aqaa_jax.config import SamplingConfig

NO_TOKEN = -1  # fills a history that is shorter than the window


def check_sampling(sampling: SamplingConfig) -> None:
    """Raises ``ValueError`` naming a setting that makes no sense."""
    s = sampling
    if s.temperature < 0:
        raise ValueError(f"temperature is {s.temperature}; expected 0 (greedy) or more")
    if not 0 < s.top_p <= 1:
        raise ValueError(f"top_p is {s.top_p}; expected more than 0 and at most 1")
    if s.top_k < 0 or s.repetition_window < 0:
        raise ValueError(f"top_k {s.top_k} and repetition_window {s.repetition_window} cannot be negative")
    if s.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {s.max_new_tokens}; expected at least 1")


def sample(
    logits_BV: Float[Array, "B V"],
    keys_B: Key[Array, "B"],
    sampling: SamplingConfig,
    *,
    recent_BW: Int[Array, "B W"] | None = None,
    allowed_BV: Bool[Array, "B V"] | None = None,
) -> Int[Array, "B"]:
    """The next token of every row, each with its own key (unused when greedy).

    Order: ``allowed_BV``, the repetition rule on ``recent_BW`` (the last ``repetition_window`` ids, oldest
    first), temperature, top-k, top-p. A row that the repetition rule leaves without any finite logit is
    sampled without the rule.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    if allowed_BV is not None:
        logits_BV = jnp.where(allowed_BV, logits_BV, -jnp.inf)
    if sampling.repetition_window and recent_BW is not None:
        ruled_BV = forbid_repetition(logits_BV, recent_BW, sampling.repetition_threshold)
        possible_B1 = jnp.any(jnp.isfinite(ruled_BV), axis=-1, keepdims=True)
        logits_BV = jnp.where(possible_B1, ruled_BV, logits_BV)
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k:
        logits_BV = keep_top_k(logits_BV, sampling.top_k)
    if sampling.top_p < 1:
        logits_BV = keep_top_p(logits_BV, sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def keep_top_k(logits_BV: Float[Array, "B V"], top_k: int) -> Float[Array, "B V"]:
    """-inf for all but the ``top_k`` largest logits (ties with the last of them stay)."""
    if top_k >= logits_BV.shape[-1]:
        return logits_BV
    last_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
    return jnp.where(logits_BV < last_B1, -jnp.inf, logits_BV)


def keep_top_p(logits_BV: Float[Array, "B V"], top_p: float) -> Float[Array, "B V"]:
    """-inf outside the smallest set of likeliest tokens whose probability reaches ``top_p`` (ties stay)."""
    sorted_BV = jnp.flip(jnp.sort(logits_BV, axis=-1), axis=-1)
    probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV  # probability of the likelier ones
    keep_BV = (before_BV < top_p).at[:, 0].set(True)
    last_B1 = jnp.min(jnp.where(keep_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV < last_B1, -jnp.inf, logits_BV)


def forbid_repetition(
    logits_BV: Float[Array, "B V"], recent_BW: Int[Array, "B W"], threshold: float
) -> Float[Array, "B V"]:
    """The published repetition rule: -inf for the last id if it makes up more than ``threshold`` of ``recent_BW``.

    ``recent_BW`` holds the last W ids, prompt included, oldest first; a row with fewer (filled with
    ``NO_TOKEN`` in front) is left alone (published ``RepetitionAwareLogitsProcessor``, Step-Audio ``tts.py``).
    """
    W, V = recent_BW.shape[1], logits_BV.shape[1]
    last_B1 = recent_BW[:, -1:]
    count_B = jnp.sum(recent_BW == last_B1, axis=1)
    # The quotient is compared in Python's float64, as published: 1 / 10 must not exceed 0.1.
    over = jnp.asarray([count / W > threshold for count in range(W + 1)])
    hit_B1 = (over[count_B] & (recent_BW[:, 0] != NO_TOKEN))[:, None]
    return jnp.where(hit_B1 & (jnp.arange(V) == last_B1), -jnp.inf, logits_BV)
