"""The velocity estimator: a one-dimensional U-Net of residual convolutions and transformer blocks.

The published ``ConditionalDecoder`` of Step-Audio's cosyvoice (after Matcha-TTS). Difference: the published
mask only multiplies activations, so padded frames leak into the attention and the norms of a batch; here
they are left out of both unless ``padding_bug=True`` asks for the published numbers. A row without padding
is the same either way.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from aqaa_jax.config import EstimatorConfig
from aqaa_jax.nn.conv import Conv1d, ConvTranspose1d, GroupNorm, masked, mish
from aqaa_jax.nn.full_attention import full_attention
from aqaa_jax.nn.linear import Linear, gelu
from aqaa_jax.nn.norm import LayerNorm
from aqaa_jax.nn.stack import scan, stack
from aqaa_jax.sharding.axes import ACT_HEADS, BATCH, CHANNELS_IN, EMBED, FEATURES, FRAMES, HEADS, MLP
from aqaa_jax.sharding.partition import constrain

GROUPS = 8


class ConvBlock(nnx.Module):
    """Convolution of 3 taps, group norm, Mish; reads and leaves zeros on padded frames."""

    def __init__(self, in_channels: int, channels: int, *, rngs: nnx.Rngs):
        self.conv = Conv1d(in_channels, channels, 3, rngs=rngs)
        self.norm = GroupNorm(GROUPS, channels, rngs=rngs)

    def __call__(self, x_BTC: Array, mask_BT: Array | None, real_BT: Array | None) -> Array:
        return masked(mish(self.norm(self.conv(masked(x_BTC, mask_BT)), real_BT)), mask_BT)


class ResidualBlock(nnx.Module):
    """Two convolution blocks with the time embedding added between, beside a 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, time_dim: int, *, rngs: nnx.Rngs):
        self.block1 = ConvBlock(in_channels, channels, rngs=rngs)
        self.time = Linear(time_dim, channels, (MLP, EMBED), rngs=rngs)
        self.block2 = ConvBlock(channels, channels, rngs=rngs)
        self.skip = Conv1d(in_channels, channels, 1, rngs=rngs)

    def __call__(self, x_BTC: Array, time_BF: Array, mask_BT: Array | None, real_BT: Array | None) -> Array:
        h_BTC = self.block1(x_BTC, mask_BT, real_BT) + self.time(mish(time_BF))[:, None]
        return self.block2(h_BTC, mask_BT, real_BT) + self.skip(masked(x_BTC, mask_BT))


class TransformerBlock(nnx.Module):
    """Pre-norm self-attention without positions, then a GELU MLP."""

    def __init__(self, channels: int, config: EstimatorConfig, *, rngs: nnx.Rngs):
        inner, mlp = config.heads * config.head_dim, config.mlp_ratio * channels
        self.attention_norm = LayerNorm(channels, rngs=rngs)
        self.query = Linear(channels, inner, (EMBED, HEADS), rngs=rngs, use_bias=False)
        self.key = Linear(channels, inner, (EMBED, HEADS), rngs=rngs, use_bias=False)
        self.value = Linear(channels, inner, (EMBED, HEADS), rngs=rngs, use_bias=False)
        self.out = Linear(inner, channels, (HEADS, EMBED), rngs=rngs)
        self.mlp_norm = LayerNorm(channels, rngs=rngs)
        self.mlp_in = Linear(channels, mlp, (EMBED, MLP), rngs=rngs)
        self.mlp_out = Linear(mlp, channels, (MLP, EMBED), rngs=rngs)
        self.heads = config.heads

    def __call__(self, x_BTC: Array, real_BT: Array | None) -> Array:
        x_BTC = x_BTC + self._attend(self.attention_norm(x_BTC), real_BT)
        return x_BTC + self.mlp_out(gelu(self.mlp_in(self.mlp_norm(x_BTC))))

    def _attend(self, x_BTC: Array, real_BT: Array | None) -> Array:
        batch, frames, _ = x_BTC.shape
        split = (batch, frames, self.heads, -1)
        q_BTNH = constrain(self.query(x_BTC).reshape(split), BATCH, FRAMES, ACT_HEADS, None)
        k_BSNH = constrain(self.key(x_BTC).reshape(split), BATCH, FRAMES, ACT_HEADS, None)
        v_BSNH = constrain(self.value(x_BTC).reshape(split), BATCH, FRAMES, ACT_HEADS, None)
        y_BTNH = full_attention(q_BTNH, k_BSNH, v_BSNH, real_BT)
        return self.out(y_BTNH.reshape(batch, frames, -1))


class Stage(nnx.Module):
    """One residual block, then ``config.blocks`` transformer blocks."""

    def __init__(self, in_channels: int, channels: int, config: EstimatorConfig, *, rngs: nnx.Rngs):
        time_dim = config.mlp_ratio * config.channels[0]
        self.residual = ResidualBlock(in_channels, channels, time_dim, rngs=rngs)
        self.transformer = nnx.List([TransformerBlock(channels, config, rngs=rngs) for _ in range(config.blocks)])

    def __call__(self, x_BTC: Array, time_BF: Array, mask_BT: Array | None, real_BT: Array | None) -> Array:
        x_BTC = self.residual(x_BTC, time_BF, mask_BT, real_BT)
        for block in self.transformer:
            x_BTC = block(x_BTC, real_BT)
        return x_BTC


class Estimator(nnx.Module):
    """Velocity of the mel at flow time ``t``, given ``mu``, speaker and prompt condition, all of ``mels`` bins.

    Down stages halve the frames between them, the ``mid`` stages (stacked, run by one scan) keep them, up stages
    mirror the down stages and read their outputs.
    """

    def __init__(self, config: EstimatorConfig, mels: int, *, rngs: nnx.Rngs):
        widths, last = config.channels, len(config.channels) - 1
        self.in_channels = 4 * mels
        time_dim = config.mlp_ratio * widths[0]
        self.time_in = Linear(self.in_channels, time_dim, (FEATURES, MLP), rngs=rngs)
        self.time_out = Linear(time_dim, time_dim, (EMBED, MLP), rngs=rngs)
        down, down_convs, up, up_convs = [], [], [], []
        for i, width in enumerate(widths):
            previous = widths[i - 1] if i else self.in_channels
            down.append(Stage(previous, width, config, rngs=rngs))
            down_convs.append(Conv1d(width, width, 3, rngs=rngs, stride=1 if i == last else 2))
        self.down, self.down_convs = nnx.List(down), nnx.List(down_convs)
        mid = widths[-1]
        self.mid = stack(lambda r: Stage(mid, mid, config, rngs=r), config.mid_blocks, rngs)
        for i, width in enumerate(reversed(widths)):
            after = widths[max(last - i - 1, 0)]
            up.append(Stage(2 * width, after, config, rngs=rngs))
            if i == last:
                up_convs.append(Conv1d(after, after, 3, rngs=rngs))
            else:
                up_convs.append(ConvTranspose1d(after, after, 4, rngs=rngs, stride=2, padding=1))
        self.up, self.up_convs = nnx.List(up), nnx.List(up_convs)
        self.final = ConvBlock(widths[0], widths[0], rngs=rngs)
        self.out = Conv1d(widths[0], mels, 1, rngs=rngs, axes=(CHANNELS_IN, FEATURES))

    def __call__(
        self,
        x_BTM: Float[Array, "B T M"],
        mask_BT: Float[Array, "B T"] | None,
        mu_BTM: Float[Array, "B T M"],
        t_B: Float[Array, "B"],
        spks_BM: Float[Array, "B M"],
        cond_BTM: Float[Array, "B T M"],
        *,
        padding_bug: bool = False,
    ) -> Float[Array, "B T M"]:
        time_BF = time_embedding(t_B, self.in_channels).astype(x_BTM.dtype)
        time_BF = self.time_out(jax.nn.silu(self.time_in(time_BF)))
        spks_BTM = jnp.broadcast_to(spks_BM[:, None], x_BTM.shape).astype(x_BTM.dtype)
        x_BTC = jnp.concatenate([x_BTM, mu_BTM, spks_BTM, cond_BTM], axis=-1)
        masks, skips = [mask_BT], []
        for stage, conv in zip(self.down, self.down_convs, strict=True):
            x_BTC = stage(x_BTC, time_BF, masks[-1], None if padding_bug else masks[-1])
            skips.append(x_BTC)
            x_BTC = conv(masked(x_BTC, masks[-1]))
            if conv.stride > 1:
                finer = masks[-1]
                masks.append(None if finer is None else finer[:, :: conv.stride])
        mask_mid, real_mid = masks[-1], None if padding_bug else masks[-1]
        x_BTC, _ = scan(lambda x, stage, _: (stage(x, time_BF, mask_mid, real_mid), None), x_BTC, self.mid)
        for stage, conv in zip(self.up, self.up_convs, strict=True):
            skip_BTC, mask_up = skips.pop(), masks.pop()
            x_BTC = jnp.concatenate([x_BTC[:, : skip_BTC.shape[1]], skip_BTC], axis=-1)
            x_BTC = stage(x_BTC, time_BF, mask_up, None if padding_bug else mask_up)
            x_BTC = conv(masked(x_BTC, mask_up))
        x_BTC = self.final(x_BTC, mask_BT, None if padding_bug else mask_BT)
        return masked(self.out(masked(x_BTC, mask_BT)), mask_BT)


def time_embedding(t_B: Float[Array, "B"], dim: int) -> Float[Array, "B F"]:
    """Sines then cosines of ``1000 t`` at ``dim / 2`` rates from 1 down to 1/10000."""
    half = dim // 2
    rate = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-math.log(10000.0) / (half - 1)))
    angle_BF = 1000.0 * t_B.astype(jnp.float32)[:, None] * rate
    return jnp.concatenate([jnp.sin(angle_BF), jnp.cos(angle_BF)], axis=-1)
