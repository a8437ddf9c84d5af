"""Speech with phone labels as training arrays for the tokenizers; the labels are the synthesiser's own phone events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from aqaa_jax.config import MelConfig
from aqaa_jax.data.phones import frame_labels, phone_sequence
from aqaa_jax.dsp import pitch

LABEL_RATE = 50  # label frames per second
PITCH_RATE = 25  # pitch values per second
PITCH_ORIGIN = 200.0  # Hz
UNKNOWN = -1  # a frame label that carries no loss: padding


class Labelled(NamedTuple):
    """One utterance: features [T, M] float16, frame labels [LABEL_RATE x seconds] int16, phone sequence int16,
    and, where asked for, pitch [PITCH_RATE x seconds] float16 (``octaves``)."""

    features: np.ndarray
    frames: np.ndarray
    phones: np.ndarray
    pitch: np.ndarray | None = None


def octaves(wav_W: np.ndarray, rate: int = 16000) -> np.ndarray:
    """Octaves above ``PITCH_ORIGIN`` at ``PITCH_RATE``, NaN where unvoiced: [W * PITCH_RATE // rate] float16."""
    hertz = pitch.f0(wav_W, MelConfig(sample_rate=rate, hop=rate // PITCH_RATE))
    return np.where(hertz > 0, np.log2(np.maximum(hertz, 1.0) / PITCH_ORIGIN), np.nan).astype(np.float16)


def labelled(
    clips: Sequence, extract: Callable[[np.ndarray], np.ndarray], rate: int = 16000, *, with_pitch: bool = False
) -> list[Labelled]:
    """Features and labels of rendered clips (``rendering.Clips``); ``extract`` maps a waveform to [T, M]."""
    out = []
    for clip in clips:
        frames = frame_labels(clip.phones, int(clip.seconds * LABEL_RATE), LABEL_RATE)
        phones = phone_sequence(clip.phones)
        features = extract(clip.wavs[rate]).astype(np.float16)
        tones = octaves(clip.wavs[rate], rate) if with_pitch else None
        out.append(Labelled(features, frames.astype(np.int16), phones.astype(np.int16), tones))
    return out
