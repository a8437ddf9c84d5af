"""Weaving: two code streams into one of 2:3 groups, text and audio into one answer, and both back.

Audio (published, Step-Audio ``tokenizer.py``): groups of 2 linguistic and 3 semantic ids, 120 ms each;
remainders are dropped.

Answers. The paper (section 5.2, tables 1 and 2) gives the patterns and the joining strategies, not the rules
at their edges. Ours, the same for every pattern:

* An answer ends with ``EOT``. Text blocks and audio blocks alternate, text first.
* Every labelled audio segment is wrapped once: ``<audio_start>`` stands right before its first audio id and
  ``<audio_end>`` right after its last one. Markers are not counted in a block, and text blocks between two
  audio blocks of a segment lie inside its span (the span holds one vocal state, not one block).
* Tail rule: when the text ends first, its last block is short and the remaining audio follows; when the audio
  ends first, its last block is short, the span closes, and the remaining text follows.
* Audio blocks hold whole 2:3 groups, so no group is ever split by text or by a marker.

One segment, 10:15, as a picture: ``t*10 S a*15 t*10 a*15 t*4 a*15 a*10 E EOT``.
Ids of text and audio come from disjoint ranges, so reading an answer needs no block sizes at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from aqaa_jax.config import WeaveConfig
from aqaa_jax.tokens.vocab import AUDIO_END, AUDIO_START, EOS, EOT, PAD, TEXT_END, TEXT_START, TokenClass, Vocab, as_ids

GROUP = 5  # ids of one group
GROUP_LINGUISTIC = 2
GROUP_SEMANTIC = 3
PATTERNS = ("interleave", "audio_only", "text_cot")


class Segment(NamedTuple):
    """One labelled stretch of an answer: its text ids and its woven audio ids (whole groups)."""

    text: ArrayLike
    audio: ArrayLike


class Problems(NamedTuple):
    """What was wrong with a generated answer, as counts. All zero: a well-formed answer."""

    audio: int = 0  # audio ids dropped to realign the groups
    control: int = 0  # control ids that no answer contains
    unused: int = 0  # ids without a meaning or outside the vocabulary
    markers: int = 0  # segment markers that do not pair up
    after_end: int = 0  # ids after the end, padding not counted
    unfinished: int = 0  # 1: no end of turn


class Unwoven(NamedTuple):
    """An answer taken apart: text ids, codes of both streams (2:3 in number), and the problems met."""

    text: np.ndarray
    linguistic: np.ndarray
    semantic: np.ndarray
    problems: Problems


def weave_audio(linguistic: ArrayLike, semantic: ArrayLike, vocab: Vocab) -> np.ndarray:
    """Codes of both streams to one id stream, int32: ``min(len // 2, len // 3)`` groups, remainders dropped."""
    linguistic_ids, semantic_ids = vocab.linguistic_ids(linguistic), vocab.semantic_ids(semantic)
    groups = min(len(linguistic_ids) // GROUP_LINGUISTIC, len(semantic_ids) // GROUP_SEMANTIC)
    left = linguistic_ids[: groups * GROUP_LINGUISTIC].reshape(groups, GROUP_LINGUISTIC)
    right = semantic_ids[: groups * GROUP_SEMANTIC].reshape(groups, GROUP_SEMANTIC)
    return np.concatenate([left, right], axis=1).reshape(-1)


def unweave_audio(ids: ArrayLike, vocab: Vocab) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of ``weave_audio``: (linguistic codes, semantic codes).

    Raises ``ValueError`` unless ``ids`` are whole 2:3 groups; ``regroup`` makes them so.
    """
    array = as_ids(ids)
    if len(array) % GROUP:
        raise ValueError(f"{len(array)} audio ids are not whole groups of {GROUP}")
    groups = array.reshape(-1, GROUP)
    left, right = groups[:, :GROUP_LINGUISTIC].reshape(-1), groups[:, GROUP_LINGUISTIC:].reshape(-1)
    return vocab.linguistic_codes(left), vocab.semantic_codes(right)


def audio_groups_per_block(weave: WeaveConfig) -> int:
    """2:3 groups in one audio block. Raises ``ValueError`` if the block is not whole groups, or on a bad pattern."""
    if weave.pattern not in PATTERNS:
        raise ValueError(f"weave pattern is {weave.pattern!r}; expected one of {', '.join(PATTERNS)}")
    groups = weave.linguistic // GROUP_LINGUISTIC
    if groups < 1 or (weave.linguistic, weave.semantic) != (groups * GROUP_LINGUISTIC, groups * GROUP_SEMANTIC):
        raise ValueError(f"audio block of {weave.linguistic}:{weave.semantic} ids; expected whole groups of 2:3")
    if weave.text < 1:
        raise ValueError(f"text block of {weave.text} ids; expected at least 1")
    return groups


def weave_answer(text: ArrayLike, audio: ArrayLike, weave: WeaveConfig) -> np.ndarray:
    """One answer of one segment: text ids and woven audio ids to ids ending in ``EOT``, int32.

    ``audio_only`` leaves the text out; ``text_cot`` puts all of it first. Without audio there are no markers.
    Raises ``ValueError`` if the audio is not whole groups or the pattern is impossible.
    """
    return marker_preserving([Segment(text, audio)], weave)


def join(segments: Sequence[Segment], weave: WeaveConfig) -> np.ndarray:
    """One answer of several segments, joined as ``weave.joining`` says (table 2), int32.

    Raises ``ValueError`` for an unknown joining, and as ``weave_answer``.
    """
    joined = {
        "marker_preserving": marker_preserving,
        "marker_removal": marker_removal,
        "pre_interleaved": pre_interleaved,
    }
    if weave.joining not in joined:
        raise ValueError(f"weave joining is {weave.joining!r}; expected one of {', '.join(joined)}")
    return joined[weave.joining](segments, weave)


def marker_preserving(segments: Sequence[Segment], weave: WeaveConfig) -> np.ndarray:
    """Join texts, join audio with every segment's own markers, then interleave (table 2: the best)."""
    texts = [i for s in segments for i in as_ids(s.text).tolist()]
    return _end(_woven(texts, [s.audio for s in segments], weave))


def pre_interleaved(segments: Sequence[Segment], weave: WeaveConfig) -> np.ndarray:
    """Interleave every segment with its own text, then join."""
    return _end([i for s in segments for i in _woven(as_ids(s.text).tolist(), [s.audio], weave)])


def marker_removal(segments: Sequence[Segment], weave: WeaveConfig) -> np.ndarray:
    """Join texts, join audio under one pair of markers, then interleave."""
    texts = [i for s in segments for i in as_ids(s.text).tolist()]
    audio = [i for s in segments for i in as_ids(s.audio).tolist()]
    return _end(_woven(texts, [audio], weave))


def _end(ids: list[int]) -> np.ndarray:
    return np.asarray([*ids, EOT], np.int32)


def _woven(text: list[int], segments: Sequence[ArrayLike], weave: WeaveConfig) -> list[int]:
    audio_block = audio_groups_per_block(weave) * GROUP
    units: list[list[int]] = []  # one audio id each, with the markers that ride on it
    for segment in segments:
        ids = [[i] for i in as_ids(segment).tolist()]
        if len(ids) % GROUP:
            raise ValueError(f"audio segment of {len(ids)} ids is not whole groups of {GROUP}")
        if ids:
            ids[0].insert(0, AUDIO_START)
            ids[-1].append(AUDIO_END)
        units += ids
    if weave.pattern == "audio_only":
        text = []
    text_block = weave.text if weave.pattern == "interleave" else max(len(text), 1)
    out: list[int] = []
    for block in range(max(-(-len(text) // text_block), -(-len(units) // audio_block))):
        out += text[block * text_block : (block + 1) * text_block]
        out += [i for unit in units[block * audio_block : (block + 1) * audio_block] for i in unit]
    return out


def unweave_answer(ids: ArrayLike, vocab: Vocab) -> Unwoven:
    """Take any generated ids apart; reads every pattern and never raises on what a model may emit.

    Ids are classified by range; markers (31..34) are stripped; everything from the first ``EOT`` on is cut;
    audio ids are regrouped into 2:3 groups by dropping as few as possible; the rest is counted.
    """
    array = as_ids(ids).reshape(-1)
    ends = np.flatnonzero((array == EOT) | (array == EOS))
    body, after = (array[: ends[0]], array[ends[0] :]) if len(ends) else (array, array[:0])
    classes = vocab.classify(body)
    audio, dropped = regroup(body[vocab.is_audio(body)], vocab)
    linguistic, semantic = unweave_audio(audio, vocab)
    problems = Problems(
        audio=dropped,
        control=int(np.sum(classes == TokenClass.CONTROL)),
        unused=int(np.sum(classes == TokenClass.UNUSED)),
        markers=_unpaired(body, finished=bool(len(ends))),
        after_end=int(np.sum((after != EOT) & (after != EOS) & (after != PAD))),
        unfinished=int(not len(ends)),
    )
    return Unwoven(body[classes == TokenClass.TEXT].astype(np.int32), linguistic, semantic, problems)


def split_transcript(ids: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(transcript ids, answer ids) of a transcript-first answer: ``<text_start> transcript <text_end> answer``.

    Without a leading ``<text_start>`` the transcript is empty; without ``<text_end>`` the answer is.
    """
    array = as_ids(ids).reshape(-1).astype(np.int32)
    if not len(array) or array[0] != TEXT_START:
        return array[:0], array
    ends = np.flatnonzero((array == TEXT_END) | (array == EOT))
    stop = int(ends[0]) if len(ends) else len(array)
    return array[1:stop], array[stop + int(stop < len(array) and array[stop] == TEXT_END) :]


def _unpaired(ids: np.ndarray, *, finished: bool) -> int:
    """Markers without a partner; a span left open by a cut is not held against it."""
    wrong, is_open = 0, False
    for i in ids[(ids == AUDIO_START) | (ids == AUDIO_END)]:
        starts = i == AUDIO_START
        wrong += int(starts == is_open)
        is_open = bool(starts)
    return wrong + int(finished and is_open)


def regroup(ids: ArrayLike, vocab: Vocab) -> tuple[np.ndarray, int]:
    """Audio ids as whole 2:3 groups, and how many ids had to go: the least possible.

    Among equally small repairs the one that leaves groups contiguous wins, so that the codes of one group
    stem from one moment (a stray id before a group is dropped rather than taken in for a member).
    """
    array = as_ids(ids)
    is_semantic = array >= vocab.semantic_start
    whole = len(array) // GROUP * GROUP
    template = np.arange(GROUP) >= GROUP_LINGUISTIC
    if (is_semantic[:whole].reshape(-1, GROUP) == template).all():
        return array[:whole].astype(np.int32), len(array) - whole
    kept = _fewest_drops(is_semantic.tolist())
    return array[kept].astype(np.int32), len(array) - len(kept)


def _fewest_drops(is_semantic: Sequence[bool]) -> list[int]:
    """Indices to keep: shortest path over (index, position in the group).

    A step keeps an id (to the next position), drops it (cost 1, and a little more inside a group), or gives
    the group up (cost: the ids it held).
    """
    little, drop, never = 1, 1 << 24, 1 << 60
    costs = [0] + [never] * (GROUP - 1)
    came: list[list[tuple[int, bool]]] = []  # per id, per position: position before, id kept
    given_up: list[int] = []  # per id: position from which the group was given up, 0 for none
    for semantic in is_semantic:
        steps = [(cost + drop + little * (p > 0), p, False) for p, cost in enumerate(costs)]
        for p in range(GROUP_LINGUISTIC, GROUP) if semantic else range(GROUP_LINGUISTIC):
            after = (p + 1) % GROUP
            steps[after] = min(steps[after], (costs[p], p, True))
        came.append([(p, keep) for _, p, keep in steps])
        costs = [cost for cost, _, _ in steps]
        best, source = min((cost + p * drop, p) for p, cost in enumerate(costs))
        given_up.append(source)
        costs[0] = best
    kept: list[int] = []
    position, lost = 0, False
    for index in range(len(is_semantic) - 1, -1, -1):
        if position == 0:
            position, lost = given_up[index], given_up[index] > 0
        position, keep = came[index][position]
        if keep and not lost:
            kept.append(index)
    return kept[::-1]
