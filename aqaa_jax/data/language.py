"""Language-model batches: ids, and the positions that carry loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

from aqaa_jax.data.buckets import BucketPlan
from aqaa_jax.data.examples import Unit, is_audio
from aqaa_jax.data.order import pad_stack
from aqaa_jax.shapes import BatchArray
from aqaa_jax.tokens.vocab import Vocab


class LanguageBatch(TypedDict):
    """``B`` rows of ``L`` ids; ``K`` loss positions a row (padded, ``loss_mask`` 0 there)."""

    tokens: BatchArray  # int32 [B, L]
    segment_ids: BatchArray  # int32 [B, L]: 1 for ids, 0 for padding
    source: BatchArray  # int32 [B, K]: the position whose hidden state predicts the target
    targets: BatchArray  # int32 [B, K]
    loss_mask: BatchArray  # float32 [B, K]


class PackedBatch(LanguageBatch):
    """Rows of several examples: ``segment_ids`` counts them from 1. In preference pairs 2p - 1 is chosen, 2p rejected.

    Preference losses sum over the segments that ``target_segments`` names and leave out where ``audio_mask`` is 1.
    """

    positions: BatchArray  # int32 [B, L]: within the example
    target_segments: BatchArray  # int32 [B, K]: the segment of each target, 0 for padding
    audio_mask: BatchArray  # float32 [B, K]: 1 where the target is an audio id or marker


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


def bucket_batches(
    plan: BucketPlan, example: Callable[[str, int, np.random.Generator], tuple[np.ndarray, np.ndarray]], seed: int
) -> Callable[[int], LanguageBatch]:
    """Step -> batch of one task and length; ``example`` gives (ids, loss_mask) of a task and an example number."""

    def batch(step: int) -> LanguageBatch:
        task, rows, length = plan[step]
        rng = np.random.default_rng([seed, 2, step])
        return language_batch([example(task, int(row), rng) for row in rows], length)

    return batch


def packed_row(units: Sequence[Unit], length: int, targets: int, vocab: Vocab) -> PackedBatch:
    """One row, without the batch dimension: the segments of ``units`` behind one another, in fixed shapes.

    The first id of a segment is never a target: nothing in its segment predicts it. Raises ``ValueError`` if the
    ids do not fit ``length`` or the loss positions do not fit ``targets``.
    """
    segments = [example for unit in units for example in unit]
    sizes = [len(example.ids) for example in segments]
    starts = np.cumsum([0, *sizes])
    at = [np.flatnonzero(example.loss_mask[1:]) for example in segments]
    used, count = int(starts[-1]), sum(len(a) for a in at)
    if used > length or count > targets:
        raise ValueError(f"{used} ids with {count} targets do not fit a row of {length} with {targets}")
    row: PackedBatch = {
        **{key: np.zeros(length, np.int32) for key in ("tokens", "segment_ids", "positions")},
        **{key: np.zeros(targets, np.int32) for key in ("source", "targets", "target_segments")},
        **{key: np.zeros(targets, np.float32) for key in ("loss_mask", "audio_mask")},
    }  # type: ignore[typeddict-item]
    if segments:
        row["tokens"][:used] = np.concatenate([example.ids for example in segments])
        row["segment_ids"][:used] = np.repeat(np.arange(1, len(sizes) + 1), sizes)
        row["positions"][:used] = np.arange(used) - np.repeat(starts[:-1], sizes)
        row["source"][:count] = np.concatenate([a + start for a, start in zip(at, starts, strict=False)])
        row["targets"][:count] = row["tokens"][row["source"][:count] + 1]
        row["target_segments"][:count] = row["segment_ids"][row["source"][:count]]
        row["loss_mask"][:count] = 1.0
        row["audio_mask"][:count] = is_audio(row["targets"][:count], vocab)
    return row
