"""Holding a generated answer to its pattern: text:linguistic:semantic blocks as ``tokens.interleave`` weaves them.

A model says what to answer; where text, codes and markers stand follows from the pattern alone (AQAA paper, section
3.1). Ids that cannot come next are taken out of the choice, so no text runs on behind the sentence's end and no code is
out of step. Ours: the published scripts sample freely and repair afterwards (``unweave_answer``).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from aqaa_jax.config import VocabConfig, WeaveConfig
from aqaa_jax.inference.generate import Constraint
from aqaa_jax.inference.sampling import NO_TOKEN
from aqaa_jax.tokens.interleave import GROUP, GROUP_LINGUISTIC, audio_groups_per_block
from aqaa_jax.tokens.vocab import TokenClass, Vocab

CLASSES = len(TokenClass)


class Place(NamedTuple):
    """Where an answer stands. ``open``: between the audio markers."""

    text: Int[Array, ""]  # text ids in this block
    audio: Int[Array, ""]  # codes in this block
    text_over: Bool[Array, ""]  # a block had less text than it may have
    open: Bool[Array, ""]
    spoken: Bool[Array, ""]  # the last id was a code
    begun: Bool[Array, ""]


@functools.lru_cache(maxsize=8)
def pattern(vocab: VocabConfig, weave: WeaveConfig) -> Constraint | None:
    """The constraint for ``generate`` of answers woven by ``weave``; None for a pattern other than ``interleave``.

    Raises ``ValueError`` for an audio block that is not whole 2:3 groups.
    """
    if weave.pattern != "interleave":
        return None
    block = audio_groups_per_block(weave) * GROUP
    class_V = np.asarray(Vocab(vocab).classify(np.arange(vocab.size)), np.int32)

    def step(place: Place, token: Array) -> tuple[Place, Array]:
        read = jnp.asarray(class_V)[jnp.clip(token, 0, len(class_V) - 1)]
        new = _after(place, read, weave.text, block)
        place = jax.tree.map(lambda old, now: jnp.where(token == NO_TOKEN, old, now), place, new)
        return place, _allowed(place, weave.text)[class_V]

    no, zero = jnp.asarray(False), jnp.asarray(0, jnp.int32)
    return Place(zero, zero, no, no, no, no), step


def _after(place: Place, read: Array, text_block: int, audio_block: int) -> Place:
    """The place behind an id of class ``read``."""
    is_text, is_code = read == TokenClass.TEXT, (read == TokenClass.LINGUISTIC) | (read == TokenClass.SEMANTIC)
    speaks = is_code | (read == TokenClass.AUDIO_START)
    audio = place.audio + is_code
    full = audio == audio_block
    # Text that is left when no audio is goes on in blocks of its own.
    anew = is_text & ((place.audio > 0) | (place.text == text_block))
    return Place(
        text=jnp.where(full, 0, jnp.where(anew, 1, place.text + is_text)),
        audio=jnp.where(full | anew, 0, audio),
        text_over=place.text_over | (speaks & (place.audio == 0) & (place.text < text_block)),
        open=(place.open | (read == TokenClass.AUDIO_START)) & (read != TokenClass.AUDIO_END),
        spoken=is_code,
        begun=jnp.ones((), bool),
    )


def _allowed(place: Place, text_block: int) -> Bool[Array, "classes"]:
    """Which classes of ids may come next."""
    at = place.audio % GROUP
    between = at == 0
    may = {
        TokenClass.TEXT: ~place.text_over & (~place.open | ((place.audio == 0) & (place.text < text_block))) & between,
        TokenClass.LINGUISTIC: place.open & (at < GROUP_LINGUISTIC),
        TokenClass.SEMANTIC: place.open & (at >= GROUP_LINGUISTIC),
        TokenClass.AUDIO_START: ~place.open & between,
        TokenClass.AUDIO_END: place.open & place.spoken & between,
        TokenClass.EOT: place.begun & ~place.open & between,
    }
    out = jnp.zeros(CLASSES, bool)
    for kind, value in may.items():
        out = out.at[int(kind)].set(value)
    return out
