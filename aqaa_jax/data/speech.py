"""Speech with phone labels as training arrays for the tokenizers; the labels are the synthesiser's own phone events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from aqaa_jax.data.phones import frame_labels, phone_sequence

LABEL_RATE = 50  # label frames per second
UNKNOWN = -1  # a frame label that carries no loss: padding


class Labelled(NamedTuple):
    """One utterance: features [T, M] float16, frame labels [LABEL_RATE x seconds] int16, phone sequence int16."""

    features: np.ndarray
    frames: np.ndarray
    phones: np.ndarray


def labelled(clips: Sequence, extract: Callable[[np.ndarray], np.ndarray], rate: int = 16000) -> list[Labelled]:
    """Features and labels of rendered clips (``rendering.Clips``); ``extract`` maps a waveform to [T, M]."""
    out = []
    for clip in clips:
        frames = frame_labels(clip.phones, int(clip.seconds * LABEL_RATE), LABEL_RATE)
        phones = phone_sequence(clip.phones)
        features = extract(clip.wavs[rate]).astype(np.float16)
        out.append(Labelled(features, frames.astype(np.int16), phones.astype(np.int16)))
    return out
