"""Semantic encoder: the Whisper-style encoder of the S3 tokenizer (CosyVoice 1, 25 Hz).

Two stride-2 convolutions, fixed sinusoids and pre-norm transformer blocks; the key projection has no bias and there
is no final LayerNorm (Radford et al. 2022, section 2.2; Du et al. 2024, CosyVoice; published code: S3Tokenizer).
"""

from __future__ import annotations

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from aqaa_jax.config import SemanticConfig
from aqaa_jax.nn.conv import frame_mask
from aqaa_jax.nn.full_attention import full_attention
from aqaa_jax.nn.linear import Linear, gelu
from aqaa_jax.nn.norm import LayerNorm
from aqaa_jax.nn.params import Initializer, fan_in, normal, weight, zeros
from aqaa_jax.nn.project import project
from aqaa_jax.nn.stack import scan, stack
from aqaa_jax.sharding.axes import BATCH, CHANNELS, CHANNELS_IN, EMBED, FEATURES, HEADS, KERNEL, MLP
from aqaa_jax.sharding.manual import at_use
from aqaa_jax.sharding.partition import constrain

STRIDE = 4  # mel frames per vector: 10 ms -> 40 ms


Count = TypeVar("Count", int, Array)


def count_vectors(frames: Count) -> Count:
    """Vectors, hence tokens, of ``frames`` mel frames: two convolutions of stride 2, each rounding up."""
    return ((frames + 1) // 2 + 1) // 2


class StridedConv(nnx.Module):
    """Convolution of three taps and stride 2 with one zero in front: ``ceil(T / 2)`` frames.

    Written as a matrix product of neighbouring frames: on a CPU its gradient is much faster than that of a
    general convolution. The taps are not flattened into the channels, which may be sharded.
    """

    def __init__(self, in_dim: int, out_dim: int, axis: str, *, rngs: nnx.Rngs):
        self.kernel = weight(rngs, (3, in_dim, out_dim), (KERNEL, axis, CHANNELS), fan_in(in_axis=(0, 1)))
        self.bias = weight(rngs, (out_dim,), (CHANNELS,), zeros)

    def __call__(self, x_BTC: Float[Array, "B T C"]) -> Float[Array, "B U D"]:
        B, T, C = x_BTC.shape
        pairs_BU2C = jnp.pad(x_BTC, ((0, 0), (0, T % 2), (0, 0))).reshape(B, -1, 2, C)
        even, odd = pairs_BU2C[:, :, 0], pairs_BU2C[:, :, 1]
        before = jnp.pad(odd[:, :-1], ((0, 0), (1, 0), (0, 0)))
        taps_BUKC = jnp.stack([before, even, odd], axis=2)
        return project(taps_BUKC, at_use(self.kernel), in_axes=2) + at_use(self.bias)


class SemanticBlock(nnx.Module):
    """Full attention and a GELU feed-forward, each behind a LayerNorm and a residual."""

    def __init__(self, config: SemanticConfig, *, rngs: nnx.Rngs, init: Initializer):
        D = config.embed
        self.norm1 = LayerNorm(D, config.norm_eps, rngs=rngs)
        self.query = Linear(D, D, (EMBED, HEADS), rngs=rngs)
        self.key = Linear(D, D, (EMBED, HEADS), rngs=rngs, use_bias=False)
        self.value = Linear(D, D, (EMBED, HEADS), rngs=rngs)
        self.out = Linear(D, D, (HEADS, EMBED), rngs=rngs, init=init)
        self.norm2 = LayerNorm(D, config.norm_eps, rngs=rngs)
        self.up = Linear(D, config.mlp, (EMBED, MLP), rngs=rngs)
        self.down = Linear(config.mlp, D, (MLP, EMBED), rngs=rngs, init=init)
        self.heads = config.heads

    def __call__(self, x_BTD: Float[Array, "B T D"], real_BT: Float[Array, "B T"]) -> Float[Array, "B T D"]:
        B, T, D = x_BTD.shape
        y = self.norm1(x_BTD)
        q, k, v = (a.reshape(B, T, self.heads, -1) for a in (self.query(y), self.key(y), self.value(y)))
        # Published: query and key each times H^(-1/4); the same product.
        x_BTD = x_BTD + self.out(full_attention(q, k, v, real_BT).reshape(B, T, D))
        return x_BTD + self.down(gelu(self.up(self.norm2(x_BTD))))


class SemanticEncoder(nnx.Module):
    """Log-mel frames (10 ms) to vectors every 40 ms, before quantisation."""

    def __init__(self, config: SemanticConfig, *, rngs: nnx.Rngs):
        self.conv1 = StridedConv(config.num_mels, config.embed, FEATURES, rngs=rngs)
        self.conv2 = StridedConv(config.embed, config.embed, CHANNELS_IN, rngs=rngs)
        init = normal(config.embed**-0.5 / math.sqrt(2 * config.layers))
        self.blocks = stack(lambda r: SemanticBlock(config, rngs=r, init=init), config.layers, rngs)
        self.config = config

    def __call__(self, mel_BTM: Float[Array, "B T M"], lengths_B: Int[Array, "B"]) -> Float[Array, "B U D"]:
        """Encode up to 30 s; ``U = count_vectors(T)``. Padding changes nothing and comes out as zeros.

        Raises ``ValueError`` when ``U`` is more than ``max_positions``.
        """
        length = count_vectors(mel_BTM.shape[1])
        if length > self.config.max_positions:
            raise ValueError(
                f"{mel_BTM.shape[1]} mel frames need {length} positions; {self.config.max_positions} exist"
            )
        half_B = (lengths_B + 1) // 2
        x = gelu(self.conv1(_masked(mel_BTM, lengths_B)))
        x = gelu(self.conv2(_masked(x, half_B)))
        # Pinned before the scan too: XLA's partitioner permuted rows of a carry pinned only inside it.
        x = constrain(x + sinusoids(length, self.config.embed), BATCH, None, None)
        lengths_B = count_vectors(lengths_B)
        real_BT = frame_mask(lengths_B, length)

        def step(x, block: SemanticBlock, _):
            return constrain(block(x, real_BT), BATCH, None, None), None

        return _masked(scan(step, x, self.blocks)[0], lengths_B)


def sinusoids(length: int, embed: int) -> Float[Array, "T D"]:
    """Whisper's fixed positions from 0: sines, then cosines, of geometric rates 1 to 1/10000."""
    half = embed // 2
    rates = np.exp(-math.log(10000.0) / (half - 1) * np.arange(half)).astype(np.float32)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _masked(x_BTC: jax.Array, lengths_B: jax.Array) -> jax.Array:
    return jnp.where((jnp.arange(x_BTC.shape[1])[None] < lengths_B[:, None])[..., None], x_BTC, 0.0)
