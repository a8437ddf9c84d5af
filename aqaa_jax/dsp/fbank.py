"""Kaldi filter bank, frame stacking and the chunked front end of the linguistic tokenizer, in NumPy.

A waveform at 16 kHz gives log filter-bank frames every 10 ms (25 ms Hamming window); seven of them, every six, are
stacked into one 60 ms frame (low frame rate, LFR). Not librosa: Kaldi's triangles are linear in mel, not in hertz,
and it removes each frame's mean and pre-emphasises inside the frame (Kaldi ``feat/feature-fbank``; the published
front end is FunASR ``WavFrontendOnline`` over ``torchaudio.compliance.kaldi.fbank``). ``log_energies`` is the bank
itself, which the speaker encoder also reads.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from aqaa_jax.config import LinguisticConfig

WINDOW_SECONDS, HOP_SECONDS = 0.025, 0.010
PRE_EMPHASIS = 0.97
LOW_HZ = 20.0
FLOOR = float(np.finfo(np.float32).eps)  # 1.19e-7, of the filter energies before the logarithm
SCALE = 32768.0  # Kaldi works on 16-bit sample values


def sizes(config: LinguisticConfig) -> tuple[int, int, int]:
    """Samples per frame, per frame hop and per chunk: 400, 160 and 3840 at 16 kHz."""
    hop = round(HOP_SECONDS * config.sample_rate)
    return round(WINDOW_SECONDS * config.sample_rate), hop, config.chunk * config.lfr_hop * hop


def fbank(
    wav_W: Float[np.ndarray, "W"], config: LinguisticConfig, noise_TW: Float[np.ndarray, "T win"] | None = None
) -> Float[np.ndarray, "T M"]:
    """Log-mel energies of all whole frames (``snip_edges``) of a waveform in [-1, 1].

    ``noise_TW`` is the dither: added to each frame (16-bit units) before its mean is removed; upstream draws a
    standard normal of deviation ``dither``.
    """
    scaled = np.asarray(wav_W, np.float32) * np.float32(SCALE)
    return log_energies(scaled, config.sample_rate, config.num_mels, noise_TW=noise_TW)


def log_energies(
    wav_W: Float[np.ndarray, "W"],
    sample_rate: int,
    num_mels: int,
    *,
    povey: bool = False,
    noise_TW: Float[np.ndarray, "T win"] | None = None,
) -> Float[np.ndarray, "T M"]:
    """Kaldi's log-mel energies of all whole frames, in the units of ``wav_W``; the window is Hamming, or ``povey``."""
    window, hop = round(WINDOW_SECONDS * sample_rate), round(HOP_SECONDS * sample_rate)
    if len(wav_W) < window:
        return np.zeros((0, num_mels), np.float32)
    frames_TW = np.lib.stride_tricks.sliding_window_view(np.asarray(wav_W, np.float32), window)[::hop]
    frames_TW = frames_TW.copy() if noise_TW is None else frames_TW + noise_TW[: len(frames_TW)].astype(np.float32)
    frames_TW -= frames_TW.mean(axis=1, keepdims=True)
    # The sample before the first one counts as the first one.
    previous_TW = np.concatenate([frames_TW[:, :1], frames_TW[:, :-1]], axis=1)
    frames_TW -= np.float32(PRE_EMPHASIS) * previous_TW
    frames_TW *= _povey(window) if povey else _hamming(window)
    size = 1 << (window - 1).bit_length()
    spectrum_TF = np.fft.rfft(frames_TW, n=size, axis=1)
    power_TF = np.square(spectrum_TF.real) + np.square(spectrum_TF.imag)
    energy_TM = power_TF.astype(np.float32) @ kaldi_filters(sample_rate, size, num_mels)
    return np.log(np.maximum(energy_TM, np.float32(FLOOR)))


@functools.lru_cache(maxsize=4)
def _hamming(size: int) -> np.ndarray:
    return (0.54 - 0.46 * np.cos(2 * np.pi * np.arange(size) / (size - 1))).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _povey(size: int) -> np.ndarray:
    """Kaldi's own window: a Hann window to the power of 0.85, so that it reaches zero."""
    return ((0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / (size - 1))) ** 0.85).astype(np.float32)


@functools.lru_cache(maxsize=4)
def kaldi_filters(sample_rate: int, n_fft: int, num_mels: int) -> Float[np.ndarray, "F M"]:
    """Triangles equally spaced and linear on the scale 1127 ln(1 + f/700) from 20 Hz to half the sample rate."""

    def mel(hz):
        return 1127.0 * np.log1p(np.asarray(hz, np.float64) / 700.0)

    edges = np.linspace(mel(LOW_HZ), mel(sample_rate / 2), num_mels + 2)
    left_M, centre_M, right_M = edges[:-2], edges[1:-1], edges[2:]
    mel_F1 = mel(np.arange(n_fft // 2 + 1) * sample_rate / n_fft)[:, None]
    rising_FM = (mel_F1 - left_M) / (centre_M - left_M)
    falling_FM = (right_M - mel_F1) / (right_M - centre_M)
    return np.maximum(0.0, np.minimum(rising_FM, falling_FM)).astype(np.float32)


def count_frames(samples: int, config: LinguisticConfig) -> int:
    """Stacked frames, hence linguistic tokens, of a waveform of ``samples``.

    The published front end works chunk by chunk and drops an end too short to complete one stack, so this is not
    a plain quotient: 240 ms chunks give 4 each, and the rest of length r gives ``ceil((f - 2) / 6)`` when it
    completes f >= 6 frames.
    """
    window, hop, chunk = sizes(config)
    chunks, rest = divmod(samples, chunk)
    left = config.lfr_stack // 2  # copies of the first frame in front of the stream
    if chunks == 0:
        carried = left
        frames = max(0, (rest - window) // hop + 1)
    else:
        carried = config.lfr_stack - config.lfr_hop
        frames = max(0, (rest - window + _carried_samples(config)) // hop + 1)
    flushed = 0 if carried + frames < config.lfr_stack or frames == 0 else carried + frames - left
    return chunks * config.chunk + -(-flushed // config.lfr_hop)


def _carried_samples(config: LinguisticConfig) -> int:
    """Samples that a whole chunk leaves for the next: those after its last frame start (320 at 16 kHz)."""
    window, hop, chunk = sizes(config)
    return chunk - ((chunk - window) // hop + 1) * hop


def lfr(
    wav_W: Float[np.ndarray, "W"], config: LinguisticConfig, noise_TW: Float[np.ndarray, "T win"] | None = None
) -> Float[np.ndarray, "T M"]:
    """All stacked frames of a whole waveform: what feeding ``push`` everything and flushing would give, at once."""
    count = count_frames(len(wav_W), config)
    if count == 0:
        return np.zeros((0, config.features), np.float32)
    frames = _with_left(fbank(wav_W, config, noise_TW), config)
    return _stacks(frames, count, config)


class FbankState(NamedTuple):
    """What the front end keeps between pieces of one stream."""

    samples_W: Float[np.ndarray, "W"]  # samples from the start of the next frame on
    pending: int  # how many of them do not yet belong to a whole chunk
    frames_TM: Float[np.ndarray, "T M"] | None  # frames kept for the next stack; None before the first frame


def start(config: LinguisticConfig) -> FbankState:
    """The state before any sample."""
    return FbankState(np.zeros(0, np.float32), 0, None)


def push(
    state: FbankState,
    wav_W: Float[np.ndarray, "W"],
    config: LinguisticConfig,
    *,
    final: bool = False,
    noise_TW: Float[np.ndarray, "T win"] | None = None,
) -> tuple[Float[np.ndarray, "T M"], FbankState]:
    """Stacked frames that a further piece ``wav_W`` (any length) of a stream completes, and the new state.

    Whole chunks give ``config.chunk`` frames each; ``final`` flushes the rest, the last frame repeated where a stack
    runs over the end. ``noise_TW`` is the dither of the frames computed in this call.
    """
    _, hop, chunk = sizes(config)
    samples_W = np.concatenate([state.samples_W, np.asarray(wav_W, np.float32)])
    rest = (state.pending + len(wav_W)) % chunk
    whole, tail = samples_W[: len(samples_W) - rest], samples_W[len(samples_W) - rest :]
    out, frames, carried = _advance(whole, state.frames_TM, config, noise_TW, final=False)
    samples_W = np.concatenate([carried, tail])
    if not final:
        return out, FbankState(samples_W, rest, frames)
    if rest:  # the published loop does not flush after a whole chunk
        used = (len(whole) - len(carried)) // hop
        flushed = _advance(samples_W, frames, config, None if noise_TW is None else noise_TW[used:], final=True)[0]
        out = np.concatenate([out, flushed])
    return out, start(config)


def _advance(
    samples_W: np.ndarray, kept_TM: np.ndarray | None, config: LinguisticConfig, noise_TW, *, final: bool
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Frames of ``samples_W``, stacked behind the kept ones: (stacks, frames kept, samples kept)."""
    hop = sizes(config)[1]
    new_TM = fbank(samples_W, config, noise_TW)
    samples_W = samples_W[len(new_TM) * hop :]
    nothing = np.zeros((0, config.features), np.float32)
    if len(new_TM) == 0:
        return nothing, kept_TM, samples_W
    frames_TM = _with_left(new_TM, config) if kept_TM is None else np.concatenate([kept_TM, new_TM])
    if len(frames_TM) < config.lfr_stack:
        return nothing, frames_TM, samples_W
    complete = (len(frames_TM) - config.lfr_stack) // config.lfr_hop + 1
    count = -(-(len(frames_TM) - config.lfr_stack // 2) // config.lfr_hop) if final else complete
    return _stacks(frames_TM, count, config), frames_TM[count * config.lfr_hop :], samples_W


def _with_left(frames_TM: np.ndarray, config: LinguisticConfig) -> np.ndarray:
    return np.concatenate([np.repeat(frames_TM[:1], config.lfr_stack // 2, axis=0), frames_TM])


def _stacks(frames_TM: np.ndarray, count: int, config: LinguisticConfig) -> np.ndarray:
    at = np.arange(count)[:, None] * config.lfr_hop + np.arange(config.lfr_stack)
    return frames_TM[np.minimum(at, len(frames_TM) - 1)].reshape(count, config.features)
