"""Language-model batches: ids, and the positions that carry loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from aqaa_jax.data.order import pad_stack


class LanguageBatch(TypedDict):
    """``B`` rows of ``L`` ids; ``K`` loss positions a row (padded, ``loss_mask`` 0 there)."""

    tokens: np.ndarray  # int32 [B, L]
    segment_ids: np.ndarray  # int32 [B, L]: 1 for ids, 0 for padding
    source: np.ndarray  # int32 [B, K]: the position whose hidden state predicts the target
    targets: np.ndarray  # int32 [B, K]
    loss_mask: np.ndarray  # float32 [B, K]


def language_batch(examples: Sequence[tuple[np.ndarray, np.ndarray]], length: int, grid: int = 32) -> LanguageBatch:
    """Pad ``(ids, loss_mask)`` examples to ``length`` and gather their loss positions.

    Targets take up a small part of a row, and the vocabulary is wide: the head runs on gathered positions only.
    Raises ``ValueError`` if an example is longer than ``length``.
    """
    longest = max(len(ids) for ids, _ in examples)
    if longest > length:
        raise ValueError(f"an example of {longest} ids does not fit a row of {length}")
    at = [np.flatnonzero(mask[1:]) for _, mask in examples]  # predicting position of each target
    width = max(1, -(-max(len(a) for a in at) // grid) * grid)
    return {
        "tokens": pad_stack([ids.astype(np.int32) for ids, _ in examples], length),
        "segment_ids": pad_stack([np.ones(len(ids), np.int32) for ids, _ in examples], length),
        "source": pad_stack([a.astype(np.int32) for a in at], width),
        "targets": pad_stack([ids[a + 1].astype(np.int32) for (ids, _), a in zip(examples, at, strict=True)], width),
        "loss_mask": pad_stack([np.ones(len(a), np.float32) for a in at], width),
    }
