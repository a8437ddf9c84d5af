"""One-dimensional convolutions, channel-last, with the padding mask and norm that go with them.

One implementation for every size: ``lax.conv_general_dilated``. It was measured on CPU (jax 0.10, two cores,
CPU-milliseconds, forward / forward + gradient) against an unfolded input with one matmul and against a
sum of shifted matmuls:

=========================  ============  ===========  ============
shape (B, T, C), kernel    convolution   unfold       shifted sum
=========================  ============  ===========  ============
(8, 120, 96), 3            1.2 / 2.4     1.0 / 2.5    1.0 / 3.2
(1, 200, 512), 3           4.7 / 19      5.7 / 17     6.4 / 16
(1, 1600, 256), 7          20 / 57       19 / 61      20 / 70
(4, 4000, 32), 7           3.7 / 13      8.3 / 21     6.5 / 24
(1, 13000, 128), 11, d=5   56 / 172      153 / 312    113 / 433
=========================  ============  ===========  ============

Two exceptions, both measured. A transposed convolution is polyphase and unfolded: ``ceil(K / stride)`` shifted
copies of the input, one matmul to ``stride * C`` outputs, a reshape; no zero is multiplied, and its gradient
takes 32 ms at (1, 688, 256), kernel 16, stride 8, where both the input-dilated and the polyphase
``conv_general_dilated`` take 1,480 (their kernel gradient has no fast path). A layer that asks for it
(``fewer_products``) runs wide kernels by ``nn/toom_cook.py`` on a CPU, 1.4 to 1.7 times faster than the table.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aqaa_jax.nn.params import Initializer, fan_in, ones, weight, zeros
from aqaa_jax.nn.toom_cook import convolve, suits
from aqaa_jax.sharding.axes import CHANNELS, CHANNELS_IN, KERNEL, NORM
from aqaa_jax.sharding.manual import at_use


class Conv1d(nnx.Module):
    """``y[t] = sum_k x[t * stride + k * dilation - padding] @ kernel[k] + bias``.

    ``padding`` zeros on both sides; the default keeps the length of an odd kernel at stride 1. ``axes`` are the
    logical axes of input and output channels. A published kernel (O, I, K) is ours transposed to (K, I, O).
    ``fewer_products`` allows errors of some 1e-5 of the output's scale for speed, on a CPU and in float32 only.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        rngs: nnx.Rngs,
        stride: int = 1,
        dilation: int = 1,
        padding: int | None = None,
        axes: tuple[str, str] = (CHANNELS_IN, CHANNELS),
        init: Initializer | None = None,
        dtype: DTypeLike = jnp.float32,
        fewer_products: bool = False,
    ):
        shape = (kernel, in_channels, out_channels)
        self.kernel = weight(rngs, shape, (KERNEL, *axes), init or fan_in((0, 1)), dtype)
        self.bias = weight(rngs, (out_channels,), (axes[1],), zeros, dtype)
        self.stride = stride
        self.dilation = dilation
        self.padding = dilation * (kernel - 1) // 2 if padding is None else padding

        self.fewer_products = fewer_products and suits(shape, stride)

    def __call__(self, x_BTC: Float[Array, "B T I"]) -> Float[Array, "B U O"]:
        w_KIO = at_use(self.kernel).astype(x_BTC.dtype)
        if self.fewer_products and x_BTC.dtype == jnp.float32:
            y_BTC = jax.lax.platform_dependent(x_BTC, w_KIO, cpu=self._fewer_products, default=self._direct)
        else:
            y_BTC = self._direct(x_BTC, w_KIO)
        return y_BTC + at_use(self.bias).astype(x_BTC.dtype)

    def _direct(self, x_BTC: Array, w_KIO: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x_BTC,
            w_KIO,
            window_strides=(self.stride,),
            padding=((self.padding, self.padding),),
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )

    def _fewer_products(self, x_BTC: Array, w_KIO: Array) -> Array:
        return convolve(x_BTC, w_KIO, self.dilation, self.padding)


class ConvTranspose1d(nnx.Module):
    """Transposed convolution: length ``T`` becomes ``(T - 1) * stride + K - 2 * padding``.

    A published kernel (I, O, K) is ours transposed to (K, I, O); tap ``k`` of input frame ``t`` lands on output
    frame ``t * stride + k - padding``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        rngs: nnx.Rngs,
        stride: int,
        padding: int = 0,
        axes: tuple[str, str] = (CHANNELS_IN, CHANNELS),
        init: Initializer | None = None,
        dtype: DTypeLike = jnp.float32,
    ):
        shape = (kernel, in_channels, out_channels)
        # every output frame sums K / stride taps
        self.kernel = weight(rngs, shape, (KERNEL, *axes), init or fan_in((0, 1), scale=stride), dtype)
        self.bias = weight(rngs, (out_channels,), (axes[1],), zeros, dtype)
        self.stride = stride
        self.padding = padding

    def __call__(self, x_BTC: Float[Array, "B T I"]) -> Float[Array, "B U O"]:
        w_KIO = at_use(self.kernel).astype(x_BTC.dtype)
        size, in_channels, out_channels = w_KIO.shape
        taps = -(-size // self.stride)
        w_KIO = jnp.pad(w_KIO, ((0, taps * self.stride - size), (0, 0), (0, 0)))
        phases = w_KIO.reshape(taps, self.stride, in_channels, out_channels).transpose(0, 2, 1, 3)
        phases = phases.reshape(taps * in_channels, self.stride * out_channels)
        batch, frames = x_BTC.shape[:2]
        x_BTC = jnp.pad(x_BTC, ((0, 0), (taps - 1, taps - 1), (0, 0)))
        shifted = [x_BTC[:, taps - 1 - tap : frames + 2 * (taps - 1) - tap] for tap in range(taps)]
        y_BTC = (jnp.concatenate(shifted, axis=-1) @ phases).reshape(batch, -1, out_channels)
        length = (frames - 1) * self.stride + size - 2 * self.padding
        return y_BTC[:, self.padding : self.padding + length] + at_use(self.bias).astype(x_BTC.dtype)


class GroupNorm(nnx.Module):
    """Group normalisation over (T, C / groups), statistics in float32.

    With ``mask_BT`` only real frames enter the statistics, so that a padded row is normalised as if it were
    alone; without it every frame counts, as in the published layers.
    """

    def __init__(self, groups: int, channels: int, eps: float = 1e-5, *, rngs: nnx.Rngs):
        if channels % groups:
            raise ValueError(f"{channels} channels do not split into {groups} groups")
        self.scale = weight(rngs, (channels,), (NORM,), ones)
        self.bias = weight(rngs, (channels,), (NORM,), zeros)
        self.groups = groups
        self.eps = eps

    def __call__(
        self, x_BTC: Float[Array, "B T C"], mask_BT: Float[Array, "B T"] | None = None
    ) -> Float[Array, "B T C"]:
        y_BTC = x_BTC.astype(jnp.float32)
        frames_B1: Array | float = float(y_BTC.shape[1])
        if mask_BT is not None:
            frames_B1 = jnp.maximum(jnp.sum(mask_BT, axis=1), 1.0)[:, None]
        y_BTC = y_BTC - self._group_mean(masked(y_BTC, mask_BT), frames_B1)[:, None]
        variance_BC = self._group_mean(masked(y_BTC * y_BTC, mask_BT), frames_B1)
        gain_BC = jax.lax.rsqrt(variance_BC + self.eps) * self.scale[...]
        return (y_BTC * gain_BC[:, None] + self.bias[...]).astype(x_BTC.dtype)

    def _group_mean(self, x_BTC: Array, frames_B1: Array | float) -> Array:
        """The mean of each group, repeated for its channels: (B, C)."""
        sum_BC = jnp.sum(x_BTC, axis=1) / frames_B1
        width = sum_BC.shape[1] // self.groups
        mean_BG = jnp.mean(sum_BC.reshape(-1, self.groups, width), axis=2)
        return jnp.repeat(mean_BG, width, axis=1)


def masked(x_BTC: Float[Array, "B T C"], mask_BT: Float[Array, "B T"] | None) -> Float[Array, "B T C"]:
    """``x_BTC`` with padded frames set to zero; unchanged if there is no mask."""
    return x_BTC if mask_BT is None else x_BTC * mask_BT[..., None].astype(x_BTC.dtype)


def frame_mask(lengths_B: Array, frames: int) -> Float[Array, "B T"]:
    """1 for the first ``lengths_B`` of ``frames`` frames, else 0, float32."""
    return (jnp.arange(frames) < lengths_B[:, None]).astype(jnp.float32)


def mish(x: Array) -> Array:
    """``x * tanh(softplus(x))`` with one exponential: ``tanh(log(1 + e)) = (e^2 + 2 e) / (e^2 + 2 e + 2)``."""
    e = jnp.exp(jnp.minimum(x, 20.0))  # beyond 20 the ratio is 1 in float32
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))
