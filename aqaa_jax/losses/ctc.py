"""Connectionist temporal classification and per-frame phone classification."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def ctc(
    logits_BTV: Float[Array, "B T V"],
    lengths_B: Int[Array, "B"],
    labels_BL: Int[Array, "B L"],
    label_lengths_B: Int[Array, "B"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """CTC negative log-likelihood (blank 0) per label: ``(sum, count of labels)``.

    Rows that cannot be aligned (fewer frames than labels plus repeats) or have no label are left out:
    their loss is unbounded and would dominate the mean.
    """
    T, L = logits_BTV.shape[1], labels_BL.shape[1]
    pad_BT = (jnp.arange(T)[None] >= lengths_B[:, None]).astype(jnp.float32)
    pad_BL = (jnp.arange(L)[None] >= label_lengths_B[:, None]).astype(jnp.float32)
    nll_B = optax.ctc_loss(logits_BTV.astype(jnp.float32), pad_BT, labels_BL, pad_BL)
    repeats_B = jnp.sum((labels_BL[:, 1:] == labels_BL[:, :-1]) * (1 - pad_BL[:, 1:]), axis=1)
    usable_B = (label_lengths_B + repeats_B <= lengths_B) & (label_lengths_B > 0)
    return jnp.sum(jnp.where(usable_B, nll_B, 0.0)), jnp.sum(jnp.where(usable_B, label_lengths_B, 0)).astype(
        jnp.float32
    )


def greedy_ctc(logits_TV: Float[Array, "T V"]) -> list[int]:
    """Best-path decoding of one utterance: collapse repeats, drop blanks (0)."""
    best = [int(i) for i in jax.device_get(jnp.argmax(logits_TV, axis=-1))]
    return [b for previous, b in zip([0, *best], best, strict=False) if b != previous and b != 0]
