"""What both tokenizer stages share: batches of labelled speech and the two phone losses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aqaa_jax.data.order import Order, pad_stack
from aqaa_jax.data.speech import LABEL_RATE, UNKNOWN, Labelled
from aqaa_jax.losses.ctc import ctc
from aqaa_jax.shapes import BatchArray
from aqaa_jax.training.step import Terms, totals

MAX_PHONES = 64


class PhoneBatch(TypedDict):
    """``B`` utterances of ``T`` feature frames with ``r`` label frames each."""

    features: BatchArray  # float32 [B, T, M]
    lengths: BatchArray  # int32 [B]
    frames: BatchArray  # int32 [B, T * r], UNKNOWN where there is no label
    phones: BatchArray  # int32 [B, MAX_PHONES]
    phone_lengths: BatchArray  # int32 [B]


def phone_batch(data: Sequence[Labelled], order: Order, step: int, rows: int, length: int, ratio: int) -> PhoneBatch:
    """The utterances of ``step``, features padded to ``length`` frames with ``ratio`` label frames each.

    Utterances longer than ``length`` must have been left out before (their phone sequence would not fit).
    """
    chosen = [data[i] for i in order.batch(step, rows)]
    return {
        "features": pad_stack([c.features for c in chosen], length).astype(np.float32),
        "lengths": np.array([min(len(c.features), length) for c in chosen], np.int32),
        "frames": pad_stack([c.frames for c in chosen], length * ratio, UNKNOWN).astype(np.int32),
        "phones": pad_stack([c.phones for c in chosen], MAX_PHONES).astype(np.int32),
        "phone_lengths": np.array([min(len(c.phones), MAX_PHONES) for c in chosen], np.int32),
    }


def phone_terms(ctc_logits: jax.Array, frame_logits: jax.Array, batch: PhoneBatch) -> Terms:
    """CTC and per-frame cross-entropy on ``[B, T * r, phones]`` logits at ``LABEL_RATE``, and frame accuracy."""
    lengths_B = batch["lengths"] * (frame_logits.shape[1] // batch["features"].shape[1])
    real = jnp.arange(frame_logits.shape[1])[None] < lengths_B[:, None]
    mask = (real & (batch["frames"] != UNKNOWN)).astype(jnp.float32)
    targets = jnp.maximum(batch["frames"], 0)
    nll = optax.softmax_cross_entropy_with_integer_labels(frame_logits, targets)
    right = (jnp.argmax(frame_logits, axis=-1) == targets) * mask
    return {
        "ctc": ctc(ctc_logits, lengths_B, batch["phones"], batch["phone_lengths"]),
        "frame": (jnp.sum(nll * mask), jnp.sum(mask)),
        "frame_accuracy": (jnp.sum(right), jnp.sum(mask)),
    }


def held_out_means(batches: Iterable[Terms]) -> dict[str, float]:
    """The mean of every term over all batches, named ``held_out_*``."""
    return {f"held_out_{name}": value / max(count, 1.0) for name, (value, count) in totals(batches).items()}


def label_ratio(frame_rate: float) -> int:
    """Label frames per feature frame (rounded: 50 / 16.67 is 3, 50 / 25 is 2)."""
    return round(LABEL_RATE / frame_rate)
