"""Log-mel spectrograms on the host, channel-last float32, by librosa.

Both published front ends use librosa's filter banks (Slaney scale and normalisation); their STFT is librosa's too,
up to padding.
"""

from __future__ import annotations

import functools

import librosa
import numpy as np
from jaxtyping import Float

from aqaa_jax.config import MelConfig

WHISPER_N_FFT, WHISPER_HOP = 400, 160


def whisper_log_mel(
    wav_W: Float[np.ndarray, "W"], num_mels: int = 128, sample_rate: int = 16000
) -> Float[np.ndarray, "T M"]:
    """Whisper's features of one piece: ``T = W // 160`` frames, not padded to 30 s.

    Power spectrum, base-10 logarithm floored at 1e-10 and at 8 below the maximum of the piece, then ``(x + 4) / 4``.
    Raises ``ValueError`` for fewer than 201 samples (reflection needs more than half a window).
    """
    _need(wav_W, WHISPER_N_FFT // 2)
    spectrum_FT = librosa.stft(
        np.asarray(wav_W, np.float32), n_fft=WHISPER_N_FFT, hop_length=WHISPER_HOP, window="hann", pad_mode="reflect"
    )[:, :-1]
    power_TF = (np.square(np.real(spectrum_FT)) + np.square(np.imag(spectrum_FT))).T
    energy_TM = power_TF @ mel_filters(sample_rate, WHISPER_N_FFT, num_mels)
    log_TM = np.log10(np.maximum(energy_TM, np.float32(1e-10)))
    return ((np.maximum(log_TM, log_TM.max() - 8.0) + 4.0) / 4.0).astype(np.float32)


def vocoder_mel(wav_W: Float[np.ndarray, "W"], config: MelConfig) -> Float[np.ndarray, "T M"]:
    """The vocoder's features: ``T = W // hop`` frames, natural logarithm of magnitudes floored at 1e-5.

    HiFi-GAN's padding: ``(n_fft - hop) / 2`` reflected samples on both sides, frames not centred; magnitude
    ``sqrt(power + 1e-9)``. Raises ``ValueError`` when the waveform is not longer than that padding.
    """
    pad = (config.n_fft - config.hop) // 2
    _need(wav_W, pad)
    padded = np.pad(np.asarray(wav_W, np.float32), (pad, pad), mode="reflect")
    spectrum_FT = librosa.stft(
        padded, n_fft=config.n_fft, hop_length=config.hop, win_length=config.win, window="hann", center=False
    )
    magnitude_TF = np.sqrt(np.square(np.real(spectrum_FT)) + np.square(np.imag(spectrum_FT)) + np.float32(1e-9)).T
    filters_FM = mel_filters(config.sample_rate, config.n_fft, config.num_mels, config.fmin, config.fmax)
    return np.log(np.maximum(magnitude_TF @ filters_FM, np.float32(1e-5))).astype(np.float32)


@functools.lru_cache(maxsize=8)
def mel_filters(
    sample_rate: int, n_fft: int, num_mels: int, fmin: float = 0.0, fmax: float | None = None
) -> Float[np.ndarray, "F M"]:
    """Slaney mel filters as a matrix that maps spectra to mel energies."""
    filters_MF = librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=num_mels, fmin=fmin, fmax=fmax)
    return np.ascontiguousarray(filters_MF.T, np.float32)


def _need(wav_W: np.ndarray, samples: int) -> None:
    if len(wav_W) <= samples:
        raise ValueError(f"{len(wav_W)} samples are too few for a mel spectrogram; expected more than {samples}")
