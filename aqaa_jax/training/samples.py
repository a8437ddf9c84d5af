"""What a model makes, to look at and listen to, and the profiler's record of some steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib as mpl
import matplotlib.image
import numpy as np

from aqaa_jax import atomic
from aqaa_jax.dsp import wav
from aqaa_jax.training.journal import Journal


class Sound(NamedTuple):
    """A waveform within [-1, 1] and its sample rate."""

    wav_W: np.ndarray
    rate: int


Samples = Mapping[str, Sound | np.ndarray]  # what a stage's ``samples(model)`` gives; arrays are spectrograms [T, M]


def write(folder: Path, samples: Samples, journal: Journal, step: int) -> None:
    """``NAME.wav`` of every sound, ``NAME.png`` of every spectrogram (low frequencies below), both to TensorBoard."""
    for name, sample in samples.items():
        if isinstance(sample, Sound):
            wav_W = np.clip(np.nan_to_num(np.asarray(sample.wav_W, np.float32)), -1.0, 1.0)
            wav.write(folder / f"{name}.wav", wav_W, sample.rate)
            journal.sound(step, name, wav_W, sample.rate)
        else:
            rgb = _coloured(np.asarray(sample, np.float32))
            with atomic.written(folder / f"{name}.png") as part:
                matplotlib.image.imsave(part, rgb, format="png")
            journal.picture(step, name, rgb)


def _coloured(mel_TM: np.ndarray) -> np.ndarray:
    """uint8 [M, T, 3], lowest to highest value over the colour map."""
    mel_TM = np.nan_to_num(mel_TM)
    low, high = mel_TM.min(), mel_TM.max()
    return mpl.colormaps["magma"]((mel_TM.T[::-1] - low) / max(high - low, 1e-9), bytes=True)[..., :3]


class Profiler:
    """Records the steps from ``first`` up to ``end``, counted from 0, into ``folder``, for xprof to show."""

    def __init__(self, folder: Path, steps: tuple[int, int]):
        self.folder, (self.first, self.end), self.on = folder, steps, False

    def before(self, step: int) -> None:
        """Called before every step."""
        if self.on and step >= self.end:
            self.close()
        elif not self.on and self.first <= step < self.end:
            jax.profiler.start_trace(str(self.folder))
            self.on = True

    def close(self) -> None:
        if self.on:
            jax.profiler.stop_trace()
            self.on = False
