"""Preference pairs: two answers to one prompt, on disk and as batches, and which of their tokens carry loss.

The paper's Eq. 2 leaves the audio vocabulary A out of the sums and says nothing of markers and end. Ours: an answer's
ids are of four kinds, and a stage names the kinds that count. The default, ``text`` and ``end``, is Eq. 2 with the
audio markers counted as audio: where speech begins and ends is a matter of the audio stream, while the end closes the
answer as a whole (behind a marker it is all but certain, so there it weighs nothing; behind written text it says that
the text is complete). All four kinds together are plain DPO.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aqaa_jax.data.buckets import BucketPlan, coarse
from aqaa_jax.data.language import LanguageBatch, language_batch
from aqaa_jax.data.order import pad_stack
from aqaa_jax.data.tasks import load_audio, save_audio
from aqaa_jax.shapes import BatchArray
from aqaa_jax.tokens.prompt import Example
from aqaa_jax.tokens.vocab import TokenClass, Vocab

_AUDIO = (TokenClass.LINGUISTIC, TokenClass.SEMANTIC)
_NOT_MARKERS = (TokenClass.TEXT, *_AUDIO, TokenClass.EOT)
KINDS: Mapping[str, tuple[TokenClass, ...]] = {
    "text": (TokenClass.TEXT,),
    "audio": _AUDIO,
    "markers": tuple(kind for kind in TokenClass if kind not in _NOT_MARKERS),  # and any other control id
    "end": (TokenClass.EOT,),
}


class Pair(NamedTuple):
    """Ids of a prompt and of two answers to it, int32; each answer ends as it was generated (with ``EOT``)."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def length(self) -> int:
        """Ids in a row: the prompt stands before each answer."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


def pair_of(chosen: Example, rejected: Example) -> Pair:
    """The pair of two documents that share a prompt, which is what stands before their targets.

    Raises ``ValueError`` if their prompts differ, or an answer is not all targets.
    """
    prompts, answers = [], []
    for ids, mask in (chosen, rejected):
        start = int(np.argmax(mask)) if np.any(mask) else len(ids)
        if not np.all(mask[start:]) or start == len(ids):
            raise ValueError(
                f"a document of {len(ids)} ids does not end with its targets; expected a prompt, an answer"
            )
        prompts.append(ids[:start].astype(np.int32))
        answers.append(ids[start:].astype(np.int32))
    if not np.array_equal(*prompts):
        raise ValueError(f"chosen and rejected answer other prompts ({len(prompts[0])} and {len(prompts[1])} ids)")
    return Pair(prompts[0], *answers)


class PairBatch(LanguageBatch):
    """``B`` rows of up to ``P`` pairs; answer ``2 p + 1`` (chosen) and ``2 p + 2`` (rejected) is one segment each."""

    answer: BatchArray  # int32 [B, K]: whose target it is; 0 is padding
    reference: BatchArray  # float32 [B, K]: log-probability of the target under the reference
    pairs: BatchArray  # float32 [B, P]: 1 where there is a pair


def counted(ids: np.ndarray, vocab: Vocab, kinds: Sequence[str]) -> np.ndarray:
    """Where ``ids`` are of one of ``kinds`` (of ``KINDS``), bool. Raises ``ValueError`` for an unknown kind or none."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"counted kinds {list(kinds)}; expected some of {', '.join(KINDS)}")
    return np.isin(vocab.classify(ids), [int(c) for kind in kinds for c in KINDS[kind]])


def pair_batch(
    rows: Sequence[Sequence[tuple[Pair, np.ndarray]]],
    length: int,
    vocab: Vocab,
    kinds: Sequence[str],
    *,
    targets: int = 32,
    pairs: int = 1,
) -> PairBatch:
    """Rows of (pair, reference), padded to ``length``; targets are the answers' ids of ``kinds``, in order.

    A reference holds one log-probability per id of the chosen and then of the rejected answer. There are places for a
    multiple of ``targets`` and for at least ``pairs`` in every row. Raises ``ValueError`` if a row does not fit, or a
    reference has another length.
    """
    laid = [_row(row, vocab, kinds) for row in rows]
    batch = language_batch([(row.ids, row.mask) for row in laid], length, grid=targets)
    segments = pad_stack([row.segments for row in laid], length)
    reference = pad_stack([row.reference for row in laid], length)
    at = np.minimum(batch["source"] + 1, length - 1)
    there = batch["loss_mask"] > 0
    return {
        **batch,
        "segment_ids": segments,
        "answer": np.where(there, np.take_along_axis(segments, at, axis=1), 0),
        "reference": np.where(there, np.take_along_axis(reference, at, axis=1), np.float32(0)),
        "pairs": pad_stack([np.ones(len(row), np.float32) for row in rows], max(pairs, *(len(row) for row in rows))),
    }


class _Row(NamedTuple):
    ids: np.ndarray
    mask: np.ndarray
    segments: np.ndarray
    reference: np.ndarray


def _row(row: Sequence[tuple[Pair, np.ndarray]], vocab: Vocab, kinds: Sequence[str]) -> _Row:
    parts: list[_Row] = []
    for pair, reference in row:
        if len(reference) != len(pair.chosen) + len(pair.rejected):
            wanted = f"{len(pair.chosen)} + {len(pair.rejected)}"
            raise ValueError(f"{len(reference)} reference log-probabilities for answers of {wanted} ids")
        prompt = np.zeros(len(pair.prompt))
        cut = np.split(reference, [len(pair.chosen)])
        for answer, its in zip((pair.chosen, pair.rejected), cut, strict=True):
            ids = np.concatenate([pair.prompt, answer])
            mask = np.concatenate([prompt.astype(bool), counted(answer, vocab, kinds)])
            segments = np.full(len(ids), len(parts) + 1, np.int32)
            parts.append(_Row(ids, mask, segments, np.concatenate([prompt, its]).astype(np.float32)))
    return _Row(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def bucket_pairs(
    plan: BucketPlan, pairs: Sequence[Pair], references: Sequence[np.ndarray], vocab: Vocab, kinds: Sequence[str]
) -> Callable[[int], PairBatch]:
    """Step -> batch of pairs of like length, one to a row; ``plan`` is of their ``padded_lengths``."""
    widest = widest_targets(pairs, vocab, kinds)

    def of_step(step: int) -> PairBatch:
        _, rows, length = plan[step]
        batch = [[(pairs[i], references[i])] for i in rows.tolist()]
        return pair_batch(batch, length, vocab, kinds, targets=widest[length])

    return of_step


def padded_lengths(pairs: Sequence[Pair]) -> np.ndarray:
    """The length of the row that every pair stands in by itself, int64: one of few, as each is compiled for."""
    return coarse(np.array([pair.length for pair in pairs], np.int64))


def target_counts(pairs: Iterable[Pair], vocab: Vocab, kinds: Sequence[str]) -> list[int]:
    """How many ids of ``kinds`` the two answers of every pair have."""
    return [int(counted(np.concatenate([pair.chosen, pair.rejected]), vocab, kinds).sum()) for pair in pairs]


def widest_targets(pairs: Sequence[Pair], vocab: Vocab, kinds: Sequence[str], grid: int = 32) -> dict[int, int]:
    """Per padded length, the most counted targets of a pair, rounded up: a batch of that length has as many places."""
    widest: dict[int, int] = {}
    for length, count in zip(padded_lengths(pairs).tolist(), target_counts(pairs, vocab, kinds), strict=True):
        widest[length] = max(widest.get(length, grid), -(-count // grid) * grid)
    return widest


def save_pairs(path: str | Path, pairs: Sequence[Pair]) -> None:
    """Write the ids of all pairs to one ``.npz``, in one step."""
    save_audio(path, [ids for pair in pairs for ids in pair])


def load_pairs(path: str | Path) -> list[Pair]:
    """What ``save_pairs`` wrote."""
    ids = load_audio(path)
    return [Pair(*ids[i : i + 3]) for i in range(0, len(ids), 3)]


def data_hash(pairs: Sequence[Pair]) -> str:
    """sha256 of what the pairs say, however they are stored."""
    digest = hashlib.sha256()
    for ids in (ids for pair in pairs for ids in pair):
        digest.update(len(ids).to_bytes(8, "little") + np.ascontiguousarray(ids, "<i4").tobytes())
    return digest.hexdigest()
