"""The phones of the corpus: a fixed inventory, frame labels and label sequences from espeak-ng's phone events."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

BLANK = 0  # index of silence, and of the CTC blank

# Every IPA string that espeak-ng's English accents emit at least ten times in 12,000 texts, after the spellings below.
_INVENTORY = (
    "a aɪ aɪə aɪɚ aʊ aː b d dʒ e ei eə eɪ eː f h i iə iː j k l m n n̩ o oə oɪ oʊ oː p r s t tʃ t̪ uː v w x z "
    "æ æʊ ð ŋ ɐ ɑə ɑː ɑːɹ ɒ ɔ ɔə ɔɪ ɔː ɔːɹ ə əl əu əɪ əɹ əʊ ɚ ɛ ɛə ɛɹ ɜ ɜː ɡ ɪ ɪɹ ɹ ɾ ʃ ʉ ʉɹ ʉː ʊ ʊə ʊɹ ʌ ʌɹ ʌʉ ʌʊ "
    "ʍ ʒ ʔ θ ᵻ"
)
_SPELLINGS = {"a:": "aː", "aa": "aː", "ʲ": ""}


@functools.cache
def phone_inventory() -> tuple[str, ...]:
    """All phones, sorted by code point; index 0 is '', silence and blank. 89 classes with it."""
    return ("", *sorted(_INVENTORY.split()))


@functools.cache
def phone_id(phone: str) -> int:
    """Index of an IPA string; a rare one outside the inventory counts as its longest beginning that is inside."""
    phone = _SPELLINGS.get(phone, phone)
    for length in range(len(phone), 0, -1):
        if phone[:length] in _index():
            return _index()[phone[:length]]
    return BLANK


def phone_sequence(phones: Sequence[tuple[str, float]]) -> np.ndarray:
    """int32 ids of the spoken phones in order, without silence: the target of a CTC loss.

    CTC needs at least one frame per id and one more between equal neighbours: see ``frames_needed``.
    """
    ids = [phone_id(name) for name, _ in phones]
    return np.array([i for i in ids if i != BLANK], np.int32)


def frames_needed(sequence: np.ndarray) -> int:
    """The fewest frames on which CTC can emit ``sequence``; with fewer its loss is not finite."""
    return len(sequence) + int((sequence[1:] == sequence[:-1]).sum())


def frame_labels(phones: Sequence[tuple[str, float]], num_frames: int, frame_rate: float = 50.0) -> np.ndarray:
    """int32 (num_frames,): the phone sounding at the middle of each frame, ``BLANK`` before the first and in pauses.

    ``phones`` are (IPA, start in seconds) in time order; the last one lasts to the end.
    """
    starts = np.array([start for _, start in phones])
    ids = np.array([BLANK, *(phone_id(name) for name, _ in phones)], np.int32)
    middles = (np.arange(num_frames) + 0.5) / frame_rate
    return ids[np.searchsorted(starts, middles, side="right")]


@functools.cache
def _index() -> dict[str, int]:
    return {phone: k for k, phone in enumerate(phone_inventory())}
