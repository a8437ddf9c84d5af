"""Harmonic source of HiFT: mel to F0, F0 to an excitation waveform.

The published ``ConvRNNF0Predictor`` and ``SourceModuleHnNSF`` / ``SineGen`` of cosyvoice (neural source filter,
Wang et al. 2019).
Differences: the phase is accumulated per frame in integers, so its error does not grow with the length of the
audio as that of a running float32 sum over samples does; phase and noise are arguments.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from aqaa_jax.config import HiftConfig
from aqaa_jax.nn.conv import Conv1d, masked
from aqaa_jax.nn.linear import Linear
from aqaa_jax.sharding.axes import CHANNELS, CHANNELS_IN, FEATURES


class F0Predictor(nnx.Module):
    """Mel to the fundamental frequency in Hz: convolutions with ELU, a linear layer, the absolute value."""

    def __init__(self, config: HiftConfig, *, rngs: nnx.Rngs):
        convs, width = [], config.f0_channels
        for i in range(config.f0_layers):
            axes = (CHANNELS_IN if i else FEATURES, CHANNELS)
            convs.append(Conv1d(width if i else config.num_mels, width, 3, rngs=rngs, axes=axes))
        self.convs = nnx.List(convs)
        self.classifier = Linear(width, 1, (CHANNELS_IN, FEATURES), rngs=rngs)

    def __call__(
        self, mel_BTM: Float[Array, "B T M"], mask_BT: Float[Array, "B T"] | None = None
    ) -> Float[Array, "B T"]:
        x_BTC = masked(mel_BTM, mask_BT)
        for conv in self.convs:
            x_BTC = masked(jax.nn.elu(conv(x_BTC)), mask_BT)
        return masked(jnp.abs(self.classifier(x_BTC)), mask_BT)[..., 0]


def cycles(f0_BT: Float[Array, "B T"], sample_rate: int, hop: int) -> Float[Array, "B W"]:
    """Phase of the fundamental in cycles, in [0, 1), at every sample; ``hop`` samples per frame.

    The running sum of ``f0 / sample_rate``, sample 0 included, F0 constant in a frame. Whole frames are added as
    32-bit fractions of a cycle, where wrapping is exact: a minute of audio stays within 1e-6 cycles.
    """
    f0_BT = f0_BT.astype(jnp.float32)
    total_BT = jnp.cumsum(_frame_advance(f0_BT, sample_rate, hop), axis=1, dtype=jnp.uint32)
    before_BT = jnp.pad(total_BT[:, :-1], ((0, 0), (1, 0)))
    before_BT = (before_BT >> 8).astype(jnp.float32) * 2.0**-24  # the bits a float32 holds
    seconds = jnp.arange(1, hop + 1, dtype=jnp.float32) / sample_rate  # of the samples of one frame
    inside = jnp.mod(before_BT[..., None] + f0_BT[..., None] * seconds, 1.0)
    return inside.reshape(f0_BT.shape[0], -1)


def _frame_advance(f0_BT: Array, sample_rate: int, hop: int) -> Array:
    """``f0 * hop / sample_rate`` modulo one cycle, in units of 2^-32: long division, one byte at a time.

    Every remainder is exact in float32 (a byte times the sample rate has less than 24 bits). A quotient that
    rounding moved by one is made good by the next, as digits may be negative.
    """
    rest_BT = f0_BT * hop
    rest_BT = rest_BT - jnp.floor(rest_BT / sample_rate) * sample_rate
    total_BT = jnp.zeros(f0_BT.shape, jnp.uint32)
    for _ in range(4):
        rest_BT = rest_BT * 256.0
        digit_BT = jnp.floor(rest_BT / sample_rate)
        rest_BT = rest_BT - digit_BT * sample_rate
        total_BT = total_BT * 256 + digit_BT.astype(jnp.int32).astype(jnp.uint32)
    return total_BT


class HarmonicSource(nnx.Module):
    """Sines at the fundamental and its harmonics, plus noise, mixed to one excitation by ``tanh(linear)``."""

    def __init__(self, config: HiftConfig, hop: int, *, rngs: nnx.Rngs):
        self.mix = Linear(config.harmonics + 1, 1, (FEATURES, FEATURES), rngs=rngs)
        self.config = config
        self.hop = hop

    def __call__(
        self, f0_BT: Float[Array, "B T"], phase_BC: Float[Array, "B C"], noise_BWC: Float[Array, "B W C"]
    ) -> Float[Array, "B W"]:
        """``phase_BC`` in radians per harmonic (the fundamental's is ignored), ``noise_BWC`` standard normal.

        No gradient reaches F0, as published.
        """
        c = self.config
        f0_BT = jax.lax.stop_gradient(f0_BT)
        base_BW = cycles(f0_BT, c.sample_rate, self.hop)
        order_C = jnp.arange(1, c.harmonics + 2, dtype=jnp.float32)
        start_BC = jnp.asarray(phase_BC).at[:, 0].set(0.0)
        angle_BWC = 2.0 * jnp.pi * jnp.mod(base_BW[..., None] * order_C, 1.0) + start_BC[:, None]
        voiced_BT = (f0_BT > c.voiced_threshold).astype(jnp.float32)
        voiced_BW1 = jnp.repeat(voiced_BT, self.hop, axis=1)[..., None]
        level_BW1 = voiced_BW1 * c.noise_sigma + (1.0 - voiced_BW1) * (c.sine_amplitude / 3.0)
        sines_BWC = c.sine_amplitude * jnp.sin(angle_BWC) * voiced_BW1 + level_BW1 * noise_BWC
        return jnp.tanh(self.mix(sines_BWC))[..., 0]
