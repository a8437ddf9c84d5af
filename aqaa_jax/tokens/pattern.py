"""The answer patterns as a finite automaton over token classes: tables for constrained decoding.

The language is that of ``interleave``: every answer woven by its three joining strategies is accepted,
provided that its first segment holds audio (a purely written answer needs no automaton). It is a little larger at
one place: after the end of a segment text of any length may follow, since the remaining text of the tail
rule and the first text block of a pre-interleaved segment look alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from aqaa_jax.config import WeaveConfig
from aqaa_jax.tokens.interleave import GROUP, GROUP_LINGUISTIC, audio_groups_per_block
from aqaa_jax.tokens.vocab import TokenClass, Vocab

START = 0  # the state before the first id of an answer
TAIL = "tail"  # in place of a group number: the text has ended, audio runs on without blocks

State = Hashable
Edge = tuple[State, TokenClass, State]


class Automaton(NamedTuple):
    """Tables for lookup by jitted code: ``allowed[state][class_of_id]`` is the mask over the vocabulary.

    ``transition``: int32 (states, classes), a forbidden class stays where it is; ``allowed``: bool (states,
    classes); ``class_of_id``: int32 (vocabulary). The state after the end allows ``EOT`` only.
    """

    transition: np.ndarray
    allowed: np.ndarray
    class_of_id: np.ndarray


def automaton(weave: WeaveConfig, vocab: Vocab, *, transcript: bool = False) -> Automaton:
    """The automaton of ``weave``'s answers; ``transcript`` requires ``<text_start> … <text_end>`` in front.

    Raises ``ValueError`` on an impossible pattern.
    """
    groups = audio_groups_per_block(weave)
    start: State = ("first", 0)
    edges = [*_text_edges(weave, groups), *_audio_edges(weave, groups)]
    if transcript:
        edges = [
            ("quote start", TokenClass.TEXT_START, "quote"),
            ("quote", TokenClass.TEXT, "quote"),
            ("quote", TokenClass.TEXT_END, start),
            *edges,
        ]
        start = "quote start"
    index: dict[State, int] = {start: START}
    for source, _, target in edges:
        index.setdefault(source, len(index))
        index.setdefault(target, len(index))
    allowed = np.zeros((len(index), len(TokenClass)), bool)
    transition = np.repeat(np.arange(len(index), dtype=np.int32)[:, None], len(TokenClass), axis=1)
    for source, token, target in edges:
        allowed[index[source], token] = True
        transition[index[source], token] = index[target]
    return Automaton(transition, allowed, np.asarray(vocab.classes))


def first_illegal(tables: Automaton, ids: ArrayLike) -> int | None:
    """Index of the first id of an answer that the automaton forbids, or None."""
    state = START
    for index, token in enumerate(tables.class_of_id[np.asarray(ids, np.int64)].tolist()):
        if not tables.allowed[state, token]:
            return index
        state = int(tables.transition[state, token])
    return None


def _text_edges(weave: WeaveConfig, groups: int) -> Iterator[Edge]:
    """States outside audio blocks.

    ``first n``: n ids of the first text block; ``text n``: n ids of a text block inside a span;
    ``free``: text after a span; ``begin g``: right after ``<audio_start>``, g groups into the block.
    """
    yield ("first", 0), TokenClass.AUDIO_START, ("begin", TAIL)
    yield "end", TokenClass.EOT, "end"
    if weave.pattern == "audio_only":
        return
    yield "free", TokenClass.TEXT, "free"
    yield "free", TokenClass.EOT, "end"
    if weave.pattern == "text_cot":
        yield "free", TokenClass.AUDIO_START, ("begin", TAIL)
        yield ("first", 0), TokenClass.TEXT, ("first", 1)
        yield ("first", 1), TokenClass.TEXT, ("first", 1)
        yield ("first", 1), TokenClass.AUDIO_START, ("begin", TAIL)
        return
    yield "free", TokenClass.AUDIO_START, ("begin", 0)
    for n in range(weave.text):
        yield ("first", n), TokenClass.TEXT, ("first", n + 1)
        if n:
            yield ("first", n), TokenClass.AUDIO_START, ("begin", TAIL)  # a short block: the text has ended
            yield ("text", n), TokenClass.TEXT, ("text", n + 1)
            yield ("text", n), TokenClass.LINGUISTIC, ("audio", TAIL, 1)
    yield ("first", weave.text), TokenClass.AUDIO_START, ("begin", 0)
    yield ("text", weave.text), TokenClass.LINGUISTIC, ("audio", 0, 1)
    yield ("group", groups), TokenClass.TEXT, ("text", 1)


def _audio_edges(weave: WeaveConfig, groups: int) -> Iterator[Edge]:
    """States of audio: ``audio g p``: p ids into a group, g groups before it in the block; ``group g``:
    g groups done; ``closed g``: the same, right after ``<audio_end>``."""
    in_blocks = range(groups) if weave.pattern == "interleave" else ()
    for g in (*in_blocks, TAIL):
        yield ("begin", g), TokenClass.LINGUISTIC, ("audio", g, 1)
        for p in range(1, GROUP):
            token = TokenClass.LINGUISTIC if p < GROUP_LINGUISTIC else TokenClass.SEMANTIC
            done = ("group", g + 1 if isinstance(g, int) else TAIL)
            yield ("audio", g, p), token, ("audio", g, p + 1) if p + 1 < GROUP else done
    for g in (*(g + 1 for g in in_blocks), TAIL):
        ahead = TAIL if g == groups else g  # no text after a full block: the text has ended
        yield ("group", g), TokenClass.LINGUISTIC, ("audio", ahead, 1)
        yield ("group", g), TokenClass.AUDIO_END, ("closed", g)
        yield ("closed", g), TokenClass.AUDIO_START, ("begin", ahead)
        yield ("closed", g), TokenClass.EOT, "end"
        if weave.pattern != "audio_only":
            yield ("closed", g), TokenClass.TEXT, "free"
