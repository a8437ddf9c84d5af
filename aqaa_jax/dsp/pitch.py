"""Fundamental frequency per mel frame, for training the vocoder's F0 predictor and for measuring voices."""

from __future__ import annotations

import librosa
import numpy as np
from jaxtyping import Float

from aqaa_jax.config import MelConfig

LOW_HZ, HIGH_HZ = 60.0, 500.0
VOICED = 0.6  # normalised autocorrelation at the found period
QUIET = 1e-3  # root mean square below which a frame is unvoiced


def f0(wav_W: Float[np.ndarray, "W"], config: MelConfig) -> Float[np.ndarray, "T"]:
    """F0 in Hz of each of ``W // hop`` mel frames (same centres as ``mel.vocoder_mel``), 0 where unvoiced.

    The period comes from ``librosa.yin``; a frame counts as voiced when its autocorrelation at that period is high
    (YIN itself always gives one).
    """
    pad = (config.n_fft - config.hop) // 2
    padded = np.pad(np.asarray(wav_W, np.float32), pad, mode="reflect")
    found = librosa.yin(
        padded,
        fmin=LOW_HZ,
        fmax=HIGH_HZ,
        sr=config.sample_rate,
        frame_length=config.n_fft,
        hop_length=config.hop,
        center=False,
    )
    frames_Tn = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop][: len(found)]
    lags_T = np.clip(np.round(config.sample_rate / found).astype(int), 1, config.n_fft // 2)
    at_Tn = np.arange(config.n_fft // 2)[None] + lags_T[:, None]
    head_Tn, later_Tn = frames_Tn[:, : config.n_fft // 2], np.take_along_axis(frames_Tn, at_Tn, axis=1)
    energy_T = np.sqrt(np.sum(head_Tn**2, axis=1) * np.sum(later_Tn**2, axis=1)) + 1e-9
    correlation_T = np.sum(head_Tn * later_Tn, axis=1) / energy_T
    loud_T = np.sqrt(np.mean(frames_Tn**2, axis=1)) > QUIET
    return np.where((correlation_T > VOICED) & loud_T, found, 0.0).astype(np.float32)
