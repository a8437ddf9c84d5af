"""Spectral losses between waveforms, differentiable, as ``(sum, count)`` (Yamamoto et al. 2020, section 2.3).

``lengths_B`` counts the real samples of each row: what lies behind is set to zero on both sides before the
transform, and only frames centred on real samples are counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aqaa_jax.config import MelConfig
from aqaa_jax.dsp.mel import mel_filters
from aqaa_jax.dsp.stft import frame, hann, stft

RESOLUTIONS = ((512, 128, 512), (1024, 256, 1024), (2048, 512, 2048))  # n_fft, hop, win
FLOOR = 1e-7  # of power, before the root: keeps the gradient of silence finite


def multi_resolution_stft(
    wav_BW: Float[Array, "B W"],
    target_BW: Float[Array, "B W"],
    lengths_B: Int[Array, "B"] | None = None,
    resolutions: Sequence[tuple[int, int, int]] = RESOLUTIONS,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Spectral convergence plus L1 of log-magnitudes, mean over ``resolutions``: sum over rows and their count.

    Spectral convergence of a row is the norm of the magnitude error over the norm of the target's magnitude. A
    resolution whose window does not fit into the waveform is an error of ``dsp.stft``.
    """
    wav_BW, target_BW = _cut(wav_BW, target_BW, lengths_B)
    total = jnp.zeros(())
    for n_fft, hop, win in resolutions:
        magnitude_BTF = _magnitude(stft(wav_BW, n_fft, hop, win))
        target_BTF = _magnitude(stft(target_BW, n_fft, hop, win))
        mask_BT1 = _frames(lengths_B, magnitude_BTF, hop)
        count_B = jnp.maximum(jnp.sum(mask_BT1, axis=(1, 2)), 1.0) * magnitude_BTF.shape[2]
        error_B = jnp.sum(mask_BT1 * jnp.square(magnitude_BTF - target_BTF), axis=(1, 2))
        energy_B = jnp.sum(mask_BT1 * jnp.square(target_BTF), axis=(1, 2))
        # the small terms only keep the roots differentiable where both sides agree or a row is empty
        convergence_B = (jnp.sqrt(error_B + 1e-12) - 1e-6) / jnp.sqrt(energy_B + 1e-12)
        log_B = jnp.sum(mask_BT1 * jnp.abs(jnp.log(magnitude_BTF) - jnp.log(target_BTF)), axis=(1, 2)) / count_B
        total += jnp.sum(convergence_B + log_B)
    return total / len(resolutions), jnp.asarray(wav_BW.shape[0], jnp.float32)


def mel_l1(
    wav_BW: Float[Array, "B W"],
    target_BW: Float[Array, "B W"],
    config: MelConfig,
    lengths_B: Int[Array, "B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Absolute log-mel error over real frames, counted per mel bin."""
    wav_BW, target_BW = _cut(wav_BW, target_BW, lengths_B)
    mel_BTM, target_BTM = log_mel(wav_BW, config), log_mel(target_BW, config)
    mask_BT1 = _frames(lengths_B, mel_BTM, config.hop, centre=config.hop // 2)
    return jnp.sum(mask_BT1 * jnp.abs(mel_BTM - target_BTM)), jnp.sum(mask_BT1) * mel_BTM.shape[2]


def log_mel(wav_BW: Float[Array, "B W"], config: MelConfig) -> Float[Array, "B T M"]:
    """The vocoder's features as ``dsp.mel.vocoder_mel`` defines them, traced: ``W // hop`` frames."""
    pad, before = (config.n_fft - config.hop) // 2, (config.n_fft - config.win) // 2
    window = jnp.pad(jnp.asarray(hann(config.win)), (before, config.n_fft - config.win - before))
    padded_BW = jnp.pad(wav_BW, ((0, 0), (pad, pad)), mode="reflect")
    spec_BTF = jnp.fft.rfft(frame(padded_BW, config.n_fft, config.hop) * window, axis=-1)
    magnitude_BTF = jnp.sqrt(jnp.square(spec_BTF.real) + jnp.square(spec_BTF.imag) + 1e-9)
    filters_FM = mel_filters(config.sample_rate, config.n_fft, config.num_mels, config.fmin, config.fmax)
    return jnp.log(jnp.maximum(magnitude_BTF @ filters_FM, 1e-5))


def _magnitude(spec_BTF: Array) -> Array:
    return jnp.sqrt(jnp.square(spec_BTF.real) + jnp.square(spec_BTF.imag) + FLOOR)


def _cut(wav_BW: Array, target_BW: Array, lengths_B: Array | None) -> tuple[Array, Array]:
    if wav_BW.shape != target_BW.shape:
        raise ValueError(f"waveforms of shape {wav_BW.shape} and {target_BW.shape} cannot be compared")
    if lengths_B is None:
        return wav_BW, target_BW
    real_BW = jnp.arange(wav_BW.shape[1]) < lengths_B[:, None]
    return jnp.where(real_BW, wav_BW, 0.0), jnp.where(real_BW, target_BW, 0.0)


def _frames(lengths_B: Array | None, spec_BTF: Array, hop: int, centre: int = 0) -> Float[Array, "B T 1"]:
    """1 on frames whose centre, ``t * hop + centre``, is a real sample."""
    if lengths_B is None:
        return jnp.ones((*spec_BTF.shape[:2], 1))
    centre_T = jnp.arange(spec_BTF.shape[1]) * hop + centre
    return (centre_T < lengths_B[:, None]).astype(jnp.float32)[..., None]
