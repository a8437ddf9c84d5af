"""Short-time Fourier transform and its inverse in JAX: batched, differentiable, fast on a CPU.

Periodic Hann window, centred frames with reflection padding: the convention of ``torch.stft``/``torch.istft`` that
the HiFT vocoder (``n_fft`` 16, hop 4) and the spectral losses use. Feature extraction on the host uses librosa
(``dsp/mel.py``); this pair exists because it must be traced and differentiated.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

_MATMUL_LIMIT = 128  # up to this size a matrix product beats the FFT, forward and backward


def hann(win: int) -> Float[np.ndarray, "win"]:
    """The periodic Hann window in float32."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win) / win)).astype(np.float32)


def stft(wav_BW: Float[Array, "B W"], n_fft: int, hop: int, win: int) -> Complex[Array, "B T F"]:
    """Spectra of ``1 + W // hop`` frames centred on multiples of ``hop``; ``F = n_fft // 2 + 1``.

    Raises ``ValueError`` unless ``win <= n_fft`` and ``W > n_fft // 2`` (the reflection needs that many samples).
    """
    window = _padded_window(n_fft, win)
    if wav_BW.shape[1] <= n_fft // 2:
        raise ValueError(f"an STFT with n_fft {n_fft} needs more than {n_fft // 2} samples, got {wav_BW.shape[1]}")
    padded_BW = jnp.pad(wav_BW, ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
    frames_BTn = frame(padded_BW, n_fft, hop)
    if n_fft > _MATMUL_LIMIT:
        return jnp.fft.rfft(frames_BTn * window, axis=-1)
    angles_nF = 2 * np.pi * np.outer(np.arange(n_fft), np.arange(n_fft // 2 + 1)) / n_fft
    real = jnp.asarray(window[:, None] * np.cos(angles_nF), jnp.float32)
    imag = jnp.asarray(-window[:, None] * np.sin(angles_nF), jnp.float32)
    return jax.lax.complex(frames_BTn @ real, frames_BTn @ imag)


def istft(
    spec_BTF: Complex[Array, "B T F"], n_fft: int, hop: int, win: int, length: int | None = None
) -> Float[Array, "B W"]:
    """The least-squares inverse of ``stft``: windowed overlap-add divided by the summed squared window.

    ``length`` samples come out (default ``(T - 1) * hop``), zeros where no frame reaches. As in ``irfft``, the
    imaginary parts of the first and (for even ``n_fft``) last bin are ignored.
    Raises ``ValueError`` if ``F`` is not ``n_fft // 2 + 1``.
    """
    T, F = spec_BTF.shape[1:]
    if n_fft // 2 + 1 != F:
        raise ValueError(f"a spectrum with {F} bins does not fit n_fft {n_fft}; expected {n_fft // 2 + 1} bins")
    window = _padded_window(n_fft, win)
    if n_fft > _MATMUL_LIMIT:
        frames_BTn = jnp.fft.irfft(spec_BTF, n=n_fft, axis=-1) * window
    else:
        angles_Fn = 2 * np.pi * np.outer(np.arange(F), np.arange(n_fft)) / n_fft
        # Every bin but the first (and the last of an even size) stands for itself and its mirror image.
        twice_F = np.where((np.arange(F) == 0) | (2 * np.arange(F) == n_fft), 1.0, 2.0) / n_fft
        real = jnp.asarray(twice_F[:, None] * np.cos(angles_Fn) * window, jnp.float32)
        imag = jnp.asarray(-twice_F[:, None] * np.sin(angles_Fn) * window, jnp.float32)
        frames_BTn = spec_BTF.real @ real + spec_BTF.imag @ imag
    length = (T - 1) * hop if length is None else length
    envelope = _overlap_add_numpy(np.broadcast_to(window**2, (T, n_fft)), hop)
    inverse = np.where(envelope > 1e-11, 1.0 / np.maximum(envelope, 1e-11), 0.0).astype(np.float32)
    wav_BW = (_overlap_add(frames_BTn, hop) * inverse)[:, n_fft // 2 :]
    return jnp.pad(wav_BW, ((0, 0), (0, max(0, length - wav_BW.shape[1]))))[:, :length]


def frame(wav_BW: Float[Array, "B W"], size: int, hop: int) -> Float[Array, "B T size"]:
    """All whole frames of ``size`` samples every ``hop``, without padding.

    Built from ``size / hop`` shifted reshapes: its gradient is a sum of slices, where that of a gather would be a
    slow scatter.
    """
    B, W = wav_BW.shape
    T = (W - size) // hop + 1
    pieces = -(-size // hop)
    padded = jnp.pad(wav_BW, ((0, 0), (0, max(0, (T + pieces - 1) * hop - W))))[:, : (T + pieces - 1) * hop]
    blocks_BTh = padded.reshape(B, T + pieces - 1, hop)
    return jnp.concatenate([blocks_BTh[:, k : k + T] for k in range(pieces)], axis=-1)[..., :size]


def _overlap_add(frames_BTn: jax.Array, hop: int) -> jax.Array:
    """The transpose of ``frame``: ``[B, (T - 1) * hop + n]`` and up to ``hop - 1`` zeros."""
    B, T, n = frames_BTn.shape
    pieces = -(-n // hop)
    blocks = jnp.pad(frames_BTn, ((0, 0), (0, 0), (0, pieces * hop - n))).reshape(B, T, pieces, hop)
    shifted = [jnp.pad(blocks[:, :, k], ((0, 0), (k, pieces - 1 - k), (0, 0))) for k in range(pieces)]
    return sum(shifted[1:], shifted[0]).reshape(B, (T + pieces - 1) * hop)


def _overlap_add_numpy(frames_Tn: np.ndarray, hop: int) -> np.ndarray:
    T, n = frames_Tn.shape
    pieces = -(-n // hop)
    out = np.zeros((T + pieces - 1, hop))
    padded = np.pad(frames_Tn, ((0, 0), (0, pieces * hop - n))).reshape(T, pieces, hop)
    for k in range(pieces):
        out[k : k + T] += padded[:, k]
    return out.reshape(-1)


def _padded_window(n_fft: int, win: int) -> np.ndarray:
    if not 1 <= win <= n_fft:
        raise ValueError(f"an STFT window of {win} samples does not fit n_fft {n_fft}; expected 1 to {n_fft}")
    left = (n_fft - win) // 2
    return np.pad(hann(win), (left, n_fft - win - left))
