"""Waveforms on the host: reading, writing, checking, resampling, level and silence.

A waveform is a float32 NumPy array ``[W]`` in [-1, 1], mono, beside its sample rate in hertz.
"""

from __future__ import annotations

import functools
import math
import os
import struct
from pathlib import Path

import librosa
import numpy as np
import soundfile
from jaxtyping import Float

from aqaa_jax import atomic

MIN_SECONDS = 0.1  # a shorter question gives at most one or two tokens
MAX_SECONDS = 600.0  # ten minutes: 25,000 audio tokens, most of the published context of 32,768
MIN_RATE = 8000
SILENT_PEAK = 1e-4  # about three steps of 16-bit audio


def read(path: str | Path) -> tuple[Float[np.ndarray, "W"], int]:
    """The waveform of a WAV, FLAC, OGG or MP3 file (channels averaged) and its sample rate.

    Raises ``ValueError`` with one line naming the file when it is missing, empty, not audio, cut short (where the
    format tells; an OGG file does not) or contains values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'is a folder, not an audio file' if path.is_dir() else 'no such audio file'}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    try:
        with soundfile.SoundFile(path) as file:
            wav_WC, rate, declared = file.read(dtype="float32", always_2d=True), file.samplerate, file.frames
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"{path}: not readable audio, or cut short ({' '.join(str(error).split())})") from None
    if len(wav_WC) < 0.9 * declared or _riff_cut_short(path):
        raise ValueError(f"{path}: cut short: the file ends before the audio that its header announces")
    if len(wav_WC) == 0:
        raise ValueError(f"{path}: the file holds no audio samples")
    if not np.isfinite(wav_WC).all():
        raise ValueError(f"{path}: contains samples that are not finite numbers (NaN or infinity)")
    return wav_WC.mean(axis=1, dtype=np.float32), int(rate)


def _riff_cut_short(path: Path) -> bool:
    """Whether a RIFF/WAVE file ends inside its data chunk: libsndfile silently returns what is there.

    Sizes of zero or near 2**32 are what programs write into a pipe, and say nothing.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(12)[:4] != b"RIFF":
            return False
        while len(head := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", head)
            if name == b"data":
                return 0 < length < 0x7FFFF000 and file.tell() + length > size
            file.seek(length + length % 2, os.SEEK_CUR)
    return False


def write(path: str | Path, wav_W: Float[np.ndarray, "W"], rate: int) -> None:
    """Write mono 16-bit PCM WAV in one step: a reader never sees a partial file.

    Samples are clipped to [-1, 1) and rounded to k / 32768, so what ``read`` gives back is within 2**-16.
    Raises ``ValueError`` unless the waveform is one-dimensional and finite.
    """
    path = Path(path)
    wav_W = np.asarray(wav_W, np.float32)
    if wav_W.ndim != 1 or not np.isfinite(wav_W).all():
        raise ValueError(f"{path}: a waveform to write is one-dimensional and finite; got shape {wav_W.shape}")
    samples = np.clip(np.round(wav_W * 32768.0), -32768, 32767).astype(np.int16)
    with atomic.written(path) as part:
        soundfile.write(part, samples, rate, format="WAV", subtype="PCM_16")


def check_question(
    wav_W: Float[np.ndarray, "W"], rate: int, name: str = "question", *, max_seconds: float = MAX_SECONDS
) -> None:
    """Raise ``ValueError``, one line naming ``name``, for a waveform that cannot be a spoken question.

    Refused: a sample rate below ``MIN_RATE``, less than ``MIN_SECONDS`` or more than ``max_seconds`` of audio, values
    that are not finite, and silence (no sample above ``SILENT_PEAK``).
    """
    if rate < MIN_RATE:
        raise ValueError(f"{name}: sample rate {rate} Hz; expected at least {MIN_RATE} Hz")
    if np.ndim(wav_W) != 1:
        raise ValueError(f"{name}: a waveform has one dimension; got shape {np.shape(wav_W)}")
    seconds = len(wav_W) / rate
    if seconds < MIN_SECONDS:
        raise ValueError(f"{name}: {seconds:.3f} s of audio is too short; expected at least {MIN_SECONDS} s")
    if seconds > max_seconds:
        raise ValueError(f"{name}: {seconds:.1f} s of audio is too long; expected at most {max_seconds:g} s")
    if not np.isfinite(wav_W).all():
        raise ValueError(f"{name}: contains samples that are not finite numbers (NaN or infinity)")
    peak = float(np.max(np.abs(wav_W)))
    if peak < SILENT_PEAK:
        raise ValueError(f"{name}: silent: the largest sample is {peak:.1e}; expected at least {SILENT_PEAK:g}")


def resample(wav_W: Float[np.ndarray, "W"], rate: int, new_rate: int) -> Float[np.ndarray, "V"]:
    """``wav_W`` at ``new_rate``: Hann-windowed sinc with 6 zero crossings and roll-off 0.99.

    The algorithm of torchaudio's default ``Resample`` (J. O. Smith, *Digital Audio Resampling*), any rate to any
    other; ``ceil(W * new_rate / rate)`` samples come out. The upstream pipeline refuses rates below 16 kHz; we
    upsample instead. Not librosa: its resamplers are other filters, and tokens follow the filter.
    Raises ``ValueError`` for a rate that is not positive.
    """
    if rate < 1 or new_rate < 1:
        raise ValueError(f"cannot resample from {rate} Hz to {new_rate} Hz; expected positive rates")
    wav_W = np.asarray(wav_W, np.float32)
    if rate == new_rate:
        return wav_W
    divisor = math.gcd(rate, new_rate)
    old, new = rate // divisor, new_rate // divisor
    first, taps = _sinc_filters(old, new)
    length = -(-new * len(wav_W) // old)
    at = np.arange(length)
    phase, start = at % new, at // new * old + first[at % new]
    before, width = -int(first.min()), taps.shape[1]
    padded = np.pad(wav_W, (before, old + width))
    out = np.zeros(length, np.float32)
    for k in range(width):  # over the few dozen taps, not over samples
        out += padded[start + (before + k)] * taps[phase, k]
    return out


@functools.lru_cache(maxsize=16)
def _sinc_filters(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Per output phase ``p`` (time ``p * old / new`` in input samples): first input sample, and filter taps."""
    zeros, cutoff = 6, min(old, new) * 0.99
    width = math.ceil(zeros * old / cutoff)
    phases = np.arange(new)
    first = phases * old // new - width
    # Distance of each tap from the output sample, in zero crossings of the sinc; torchaudio holds the phase in float32.
    phase_1 = (phases / new).astype(np.float32)[:, None].astype(np.float64)
    t = ((first[:, None] + np.arange(2 * width + 2)) / old - phase_1) * cutoff
    window = np.cos(np.clip(t, -zeros, zeros) * np.pi / zeros / 2) ** 2
    return first, (np.sinc(t) * window * cutoff / old).astype(np.float32)


def energy_norm(wav_W: Float[np.ndarray, "W"]) -> Float[np.ndarray, "W"]:
    """Scale the peak to 0.999; a peak below 0.01 counts as 0.01 so that near-silence is not blown up."""
    peak = np.max(np.abs(wav_W), initial=0.0)
    return (wav_W * np.float32(0.999) / np.float32(max(peak, 0.01))).astype(np.float32)


def trim_silence(wav_W: Float[np.ndarray, "W"], rate: int = 16000) -> Float[np.ndarray, "V"]:
    """Cut quiet edges (20 dB below the peak), leave 0.05 s before and 0.22 s after; zeros fill in where there is less.

    The loud part is rounded up to whole units of 240 samples (upstream ``wav2token``, section 4.4 of the
    specification), so the length is ``240 F + 0.27 rate``.
    """
    if len(wav_W) == 0:
        return wav_W
    _, (start, end) = librosa.effects.trim(wav_W, top_db=20, frame_length=512, hop_length=128)
    units = -(-int(end - start) // 240)
    left = int(0.05 * rate)
    length = int(units * 240 + 0.27 * rate)
    padded = np.pad(wav_W, (left, length))
    return padded[start : start + length]
