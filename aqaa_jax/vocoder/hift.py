"""HiFT: mel to waveform by F0, harmonic source, upsampling network and inverse STFT.

The published ``HiFTGenerator`` of cosyvoice (HiFTNet, Li et al. 2023). Differences: weight norm is folded into the
kernels (``convert/hift.py``); the source is exact over long audio (``source.py``); the sine of the snake
activation is a polynomial; rows of different lengths may share a batch, each giving the samples it gives alone.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from aqaa_jax.config import HiftConfig
from aqaa_jax.dsp.stft import hann, istft, stft
from aqaa_jax.nn.conv import Conv1d, ConvTranspose1d, frame_mask, masked
from aqaa_jax.nn.params import fan_in, ones, weight
from aqaa_jax.sharding.axes import BATCH, CHANNELS, CHANNELS_IN, FEATURES, FRAMES, NORM
from aqaa_jax.sharding.partition import constrain
from aqaa_jax.vocoder.source import F0Predictor, HarmonicSource

MAX_MAGNITUDE = 100.0
LAST_SLOPE = 0.01  # the published network forgets its own slope (0.1) before the last convolution

# sin(pi r)^2 / r^2 in powers of r^2 for |r| <= 1/2: least squares at Chebyshev nodes, error of the square 2e-8.
_SINE_SQUARED = (9.869604312, -32.46967117, 42.72719634, -30.10146584, 13.05009892, -3.356592622)


def snake(x: Array, alpha: Array) -> Array:
    """``x + sin(alpha x)^2 / alpha``.

    The square has period ``pi``: reduced to half a period around zero it is a polynomial, which a CPU evaluates
    about eight times faster than its scalar sine.
    """
    turns = x * (alpha * (1.0 / math.pi))
    r2 = jnp.square(turns - jax.lax.stop_gradient(jnp.round(turns)))
    square = jnp.zeros_like(r2)
    for coefficient in reversed(_SINE_SQUARED):
        square = (square + coefficient) * r2
    return x + square * (1.0 / (alpha + 1e-9))


class Snake(nnx.Module):
    """``snake`` with one learned ``alpha`` per channel."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.alpha = weight(rngs, (channels,), (NORM,), ones)

    def __call__(self, x_BTC: Array) -> Array:
        return snake(x_BTC, self.alpha[...].astype(x_BTC.dtype))


class ResBlock(nnx.Module):
    """``x + conv(snake(dilated conv(snake(x))))`` for every dilation in turn."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], *, rngs: nnx.Rngs):
        init = fan_in((0, 1), scale=0.1)  # many residual sums in a row: start near the identity

        def conv(dilation: int) -> Conv1d:
            return Conv1d(channels, channels, kernel, rngs=rngs, dilation=dilation, init=init, fewer_products=True)

        self.convs1 = nnx.List([conv(d) for d in dilations])
        self.convs2 = nnx.List([conv(1) for _ in dilations])
        self.snakes1 = nnx.List([Snake(channels, rngs=rngs) for _ in dilations])
        self.snakes2 = nnx.List([Snake(channels, rngs=rngs) for _ in dilations])

    def __call__(self, x_BTC: Array, mask_BT: Array | None = None) -> Array:
        for conv1, conv2, snake1, snake2 in zip(self.convs1, self.convs2, self.snakes1, self.snakes2, strict=True):
            h_BTC = masked(conv1(snake1(x_BTC)), mask_BT)
            x_BTC = x_BTC + masked(conv2(snake2(h_BTC)), mask_BT)
        return x_BTC


class Hift(nnx.Module):
    """Log-mel frames to samples: ``hop`` samples per frame."""

    def __init__(self, config: HiftConfig, *, rngs: nnx.Rngs):
        c = config
        _check(c)
        self.config = c
        self.hop = math.prod(c.upsample_rates) * c.istft_hop
        bins = c.istft_n_fft + 2  # real and imaginary parts, or magnitudes and angles
        self.f0_predictor = F0Predictor(c, rngs=rngs)
        self.harmonic_source = HarmonicSource(c, self.hop, rngs=rngs)
        self.conv_pre = Conv1d(c.num_mels, c.channels, 7, rngs=rngs, axes=(FEATURES, CHANNELS))
        ups, source_convs, source_resblocks, resblocks = [], [], [], []
        for i, (rate, kernel) in enumerate(zip(c.upsample_rates, c.upsample_kernels, strict=True)):
            wide, width = c.channels >> i, c.channels >> (i + 1)
            ups.append(ConvTranspose1d(wide, width, kernel, rngs=rngs, stride=rate, padding=(kernel - rate) // 2))
            source_convs.append(_source_conv(bins, width, math.prod(c.upsample_rates[i + 1 :]), rngs))
            source_resblocks.append(ResBlock(width, c.source_kernels[i], c.source_dilations[i], rngs=rngs))
            for size, dilations in zip(c.resblock_kernels, c.resblock_dilations, strict=True):
                resblocks.append(ResBlock(width, size, dilations, rngs=rngs))
        self.ups, self.source_convs = nnx.List(ups), nnx.List(source_convs)
        self.source_resblocks, self.resblocks = nnx.List(source_resblocks), nnx.List(resblocks)
        post = fan_in((0, 1), scale=0.1)  # magnitudes are exponentials: start near 1
        self.conv_post = Conv1d(width, bins, 7, rngs=rngs, axes=(CHANNELS_IN, FEATURES), init=post)

    def f0(self, mel_BTM: Float[Array, "B T M"], lengths_B: Int[Array, "B"] | None = None) -> Float[Array, "B T"]:
        """Fundamental frequency in Hz per frame; 0 on padded frames."""
        mask_BT = None if lengths_B is None else frame_mask(lengths_B, mel_BTM.shape[1])
        with jax.default_matmul_precision("float32"):  # the phase integrates every error of F0
            return self.f0_predictor(mel_BTM, mask_BT)

    def source(
        self, f0_BT: Float[Array, "B T"], phase_BC: Float[Array, "B C"], noise_BWC: Float[Array, "B W C"]
    ) -> Float[Array, "B W"]:
        """The excitation; see ``HarmonicSource``."""
        return self.harmonic_source(f0_BT, phase_BC, noise_BWC)

    def source_spectrum(
        self, source_BW: Float[Array, "B W"], lengths_B: Int[Array, "B"] | None = None
    ) -> Float[Array, "B T C"]:
        """STFT of the source, real parts then imaginary parts: ``W / istft_hop + 1`` frames."""
        c = self.config
        if lengths_B is not None:  # the reflection at the end of a row lies inside the batch
            index_W, end_B1 = jnp.arange(source_BW.shape[1]), (lengths_B * self.hop)[:, None]
            index_BW = jnp.where(index_W < end_B1, index_W, jnp.maximum(2 * end_B1 - 2 - index_W, 0))
            source_BW = jnp.take_along_axis(source_BW, index_BW, axis=1)
        spec_BTF = stft(source_BW, c.istft_n_fft, c.istft_hop, c.istft_n_fft)
        spec_BTC = jnp.concatenate([spec_BTF.real, spec_BTF.imag], axis=-1)
        return masked(spec_BTC, self._mask(lengths_B, self.hop // c.istft_hop, spec_BTC.shape[1], 1))

    def spectrum(
        self,
        mel_BTM: Float[Array, "B T M"],
        source_BW: Float[Array, "B W"],
        lengths_B: Int[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B T F"], Float[Array, "B T F"]]:
        """Magnitudes and angles of the output's STFT (the angle is the sine of the network's output)."""
        c = self.config
        source_BTC = self.source_spectrum(source_BW, lengths_B)
        frames, rate, last = mel_BTM.shape[1], 1, len(c.upsample_rates) - 1
        mask_BT = self._mask(lengths_B, 1, frames)
        x_BTC = self.conv_pre(masked(constrain(mel_BTM, BATCH, FRAMES, None), mask_BT))
        for i, (up, source_conv) in enumerate(zip(self.ups, self.source_convs, strict=True)):
            x_BTC = up(jax.nn.leaky_relu(masked(x_BTC, mask_BT), c.leaky_slope))
            rate *= up.stride
            if i == last:
                x_BTC = jnp.concatenate([x_BTC[:, 1:2], x_BTC], axis=1)  # reflection of one frame on the left
            mask_BT = self._mask(lengths_B, rate, x_BTC.shape[1], int(i == last))
            h_BTC = self.source_resblocks[i](masked(source_conv(source_BTC), mask_BT), mask_BT)
            x_BTC = masked(x_BTC, mask_BT) + h_BTC
            count = len(c.resblock_kernels)
            blocks = self.resblocks[i * count : (i + 1) * count]
            x_BTC = functools.reduce(jnp.add, [block(x_BTC, mask_BT) for block in blocks]) / count
        x_BTC = self.conv_post(masked(jax.nn.leaky_relu(x_BTC, LAST_SLOPE), mask_BT))
        bins = c.istft_n_fft // 2 + 1
        magnitude_BTF = jnp.minimum(jnp.exp(x_BTC[..., :bins]), MAX_MAGNITUDE)
        return masked(magnitude_BTF, mask_BT), jnp.sin(x_BTC[..., bins:])

    def decode(
        self,
        mel_BTM: Float[Array, "B T M"],
        source_BW: Float[Array, "B W"],
        lengths_B: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B W"]:
        """Waveform from mel and source, clipped to ``audio_limit``; zero behind the end of a row."""
        c = self.config
        magnitude_BTF, angle_BTF = self.spectrum(mel_BTM, source_BW, lengths_B)
        spec_BTF = jax.lax.complex(magnitude_BTF * jnp.cos(angle_BTF), magnitude_BTF * jnp.sin(angle_BTF))
        wav_BW = istft(spec_BTF, c.istft_n_fft, c.istft_hop, c.istft_n_fft, mel_BTM.shape[1] * self.hop)
        if lengths_B is not None:
            wav_BW = wav_BW * self._row_ends(lengths_B, mel_BTM.shape[1])
        return jnp.clip(wav_BW, -c.audio_limit, c.audio_limit)

    def __call__(
        self,
        mel_BTM: Float[Array, "B T M"],
        phase_BC: Float[Array, "B C"],
        noise_BWC: Float[Array, "B W C"],
        *,
        lengths_B: Int[Array, "B"] | None = None,
        cache_source_BW: Float[Array, "B U"] | None = None,
    ) -> tuple[Float[Array, "B W"], Float[Array, "B W"]]:
        """Waveform and source. ``cache_source_BW`` replaces the start of the source (to continue a stream)."""
        source_BW = self.source(self.f0(mel_BTM, lengths_B), phase_BC, noise_BWC)
        if cache_source_BW is not None:
            source_BW = source_BW.at[:, : cache_source_BW.shape[1]].set(cache_source_BW)
        return self.decode(mel_BTM, source_BW, lengths_B), source_BW

    def _mask(self, lengths_B: Array | None, rate: int, frames: int, extra: int = 0) -> Array | None:
        return None if lengths_B is None else frame_mask(lengths_B * rate + extra, frames)

    def _row_ends(self, lengths_B: Array, frames: int) -> Array:
        """Factor per sample: 0 behind a row; near its end the overlap-add has fewer frames than ``istft`` counts."""
        n_fft, hop = self.config.istft_n_fft, self.config.istft_hop
        squared, half = hann(n_fft) ** 2, n_fft // 2
        gain = np.ones(half + 2, np.float32)
        gain[0] = 0.0
        for d in range(1, half + 1):  # d samples before the centre of the last frame
            taps = {m: squared[half - d - m * hop] for m in range(-n_fft, n_fft) if 0 <= half - d - m * hop < n_fft}
            gain[d] = sum(taps.values()) / sum(v for m, v in taps.items() if m <= 0)
        left_BW = (lengths_B * self.hop)[:, None] - jnp.arange(frames * self.hop)
        factor_BW = jnp.asarray(gain)[jnp.clip(left_BW, 0, half + 1)]
        return jnp.where((lengths_B == frames)[:, None], 1.0, factor_BW)


def _source_conv(bins: int, channels: int, rate: int, rngs: nnx.Rngs) -> Conv1d:
    """From the rate of the source's STFT down to the rate of a stage, ``rate`` times lower."""
    axes = (FEATURES, CHANNELS)
    if rate == 1:
        return Conv1d(bins, channels, 1, rngs=rngs, axes=axes)
    return Conv1d(bins, channels, 2 * rate, rngs=rngs, stride=rate, padding=rate // 2, axes=axes)


def _check(c: HiftConfig) -> None:
    stages = len(c.upsample_rates)
    if not stages == len(c.upsample_kernels) == len(c.source_kernels) == len(c.source_dilations):
        raise ValueError(f"HiFT has {stages} upsample rates; kernels and source blocks must be as many")
    if len(c.resblock_kernels) != len(c.resblock_dilations):
        raise ValueError(f"{len(c.resblock_kernels)} resblock kernels, {len(c.resblock_dilations)} dilation lists")
    if c.channels % (1 << stages):
        raise ValueError(f"{c.channels} HiFT channels cannot be halved {stages} times")
