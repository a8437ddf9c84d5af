"""Speech with phone labels as training arrays for the tokenizers.

Labels come from the synthesiser's own phone events, at ``LABEL_RATE`` frames per second: id 0 is silence (and the
CTC blank), the rest index a fixed inventory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

LABEL_RATE = 50
UNKNOWN = -1  # a frame label that carries no loss


class Labelled(NamedTuple):
    """One utterance: features [T, M] float16, frame labels [LABEL_RATE x seconds] int16, phone sequence int16."""

    features: np.ndarray
    frames: np.ndarray
    phones: np.ndarray


def inventory(sequences: Sequence[Sequence[tuple[str, float]]]) -> list[str]:
    """Sorted phone names of a set, with '' (silence, blank) in front."""
    return ["", *sorted({name for phones in sequences for name, _ in phones if name})]


def label(phones: Sequence[tuple[str, float]], seconds: float, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Frame labels at ``LABEL_RATE`` and the phone sequence of one utterance, as ids of ``names``.

    A frame takes the phone at its centre; a phone missing from ``names`` is ``UNKNOWN`` in the frames and left out
    of the sequence.
    """
    index = {name: i for i, name in enumerate(names)}
    starts = np.array([start for _, start in phones])
    ids = np.array([index.get(name, UNKNOWN) for name, _ in phones], np.int16)
    centres = (np.arange(int(seconds * LABEL_RATE)) + 0.5) / LABEL_RATE
    at = np.searchsorted(starts, centres, side="right") - 1
    frames = np.where(at >= 0, ids[np.maximum(at, 0)] if len(ids) else 0, 0).astype(np.int16)
    return frames, ids[ids > 0]


def labelled(
    clips: Sequence, extract: Callable[[np.ndarray], np.ndarray], names: Sequence[str], rate: int = 16000
) -> list[Labelled]:
    """Features and labels of rendered clips (``rendering.Clips``); ``extract`` maps a waveform to [T, M]."""
    out = []
    for clip in clips:
        frames, phones = label(clip.phones, clip.seconds, names)
        out.append(Labelled(extract(clip.wavs[rate]).astype(np.float16), frames, phones))
    return out
