"""Linguistic encoder: the chunked SANM encoder of Paraformer-large online, all chunks at once or as a stream.

Paraformer (Gao et al. 2022) with SAN-M memory blocks (Gao et al. 2020), as run by FunASR ``SANMEncoderChunkOpt``
inside the Step-Audio tokenizer. Each chunk of four frames is encoded as a window of nine: five recomputed from
before it and its own. A window attends to itself and, from each of the four windows before it, to the keys and
values of the first four frames, computed there at the same layer. So nothing depends on a later chunk, and all
windows can be computed side by side: the keys and values of the look-back are shifted copies, never recomputed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from aqaa_jax.config import LinguisticConfig
from aqaa_jax.nn.linear import Linear
from aqaa_jax.nn.norm import LayerNorm
from aqaa_jax.nn.params import Initializer, normal, ones, weight, zeros
from aqaa_jax.nn.stack import scan, stack
from aqaa_jax.sharding.axes import BATCH, EMBED, FEATURES, HEADS, KERNEL, MLP, NORM
from aqaa_jax.sharding.partition import constrain


class EncoderState(NamedTuple):
    """What one stream carries from chunk to chunk; arrays only, a pytree."""

    chunk: Int[Array, ""]  # chunks seen
    overlap_BLM: Float[Array, "B overlap M"]  # the last inputs, scaled, with positions added
    first_key_BSD: Float[Array, "B S D"]  # look-back of the first block
    first_value_BSD: Float[Array, "B S D"]
    keys: Float[Array, "layers B S D"]  # look-back of the stacked blocks
    values: Float[Array, "layers B S D"]


class SanmBlock(nnx.Module):
    """Attention with FSMN memory, then feed-forward, both after a LayerNorm; ``in_dim`` differs in the first block."""

    def __init__(self, config: LinguisticConfig, in_dim: int, axis: str, *, rngs: nnx.Rngs, init: Initializer):
        D = config.embed
        self.norm1 = LayerNorm(in_dim, config.norm_eps, rngs=rngs)
        self.query = Linear(in_dim, D, (axis, HEADS), rngs=rngs)
        self.key = Linear(in_dim, D, (axis, HEADS), rngs=rngs)
        self.value = Linear(in_dim, D, (axis, HEADS), rngs=rngs)
        self.fsmn = weight(rngs, (config.fsmn_kernel, D), (KERNEL, HEADS), normal(config.fsmn_kernel**-0.5))
        self.out = Linear(D, D, (HEADS, EMBED), rngs=rngs, init=init)
        self.norm2 = LayerNorm(D, config.norm_eps, rngs=rngs)
        self.up = Linear(D, config.mlp, (EMBED, MLP), rngs=rngs)
        self.down = Linear(config.mlp, D, (MLP, EMBED), rngs=rngs, init=init)
        self.heads = config.heads

    def project(self, x: Float[Array, "*B M"]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Query, key and value of normed inputs."""
        y = self.norm1(x)
        return self.query(y), self.key(y), self.value(y)

    def mix(
        self,
        q_BPLD: Float[Array, "B P L D"],
        k_BPSD: Float[Array, "B P S D"],
        v_BPSD: Float[Array, "B P S D"],
        own_BPLD: Float[Array, "B P L D"],
        bias_BPS: Float[Array, "B P S"],
    ) -> Float[Array, "B P L D"]:
        """Attention over look-back and window plus the FSMN memory of the window's own values."""
        B, P, L, D = q_BPLD.shape
        N, H = self.heads, D // self.heads
        q, k, v = (a.reshape(B, P, -1, N, H) for a in (q_BPLD, k_BPSD, v_BPSD))
        logits = jnp.einsum("bplnh,bpsnh->bpnls", q * H**-0.5, k) + bias_BPS[:, :, None, None]
        mixed_BPLNH = jnp.einsum("bpnls,bpsnh->bplnh", jax.nn.softmax(logits, axis=-1), v)
        return self.out(mixed_BPLNH.reshape(B, P, L, D)) + own_BPLD + depthwise(own_BPLD, self.fsmn[...])

    def feed_forward(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """The block's second half, with its residual."""
        return x + self.down(jax.nn.relu(self.up(self.norm2(x))))


def depthwise(x_BPLD: Float[Array, "B P L D"], kernel_KD: Float[Array, "K D"]) -> Float[Array, "B P L D"]:
    """Depthwise convolution along each window with zeros around it, output length L, kernel centred.

    A window is no longer than the kernel, so every channel is one small L x L (Toeplitz) matrix: on a CPU this is
    several times faster than shifted sums or a grouped convolution, above all its gradient.
    """
    K, L = kernel_KD.shape[0], x_BPLD.shape[2]
    tap_LL = np.arange(L)[None] - np.arange(L)[:, None] + K // 2
    inside_LL1 = ((tap_LL >= 0) & (tap_LL < K))[..., None]
    toeplitz_LLD = jnp.where(inside_LL1, kernel_KD[np.clip(tap_LL, 0, K - 1)], 0.0)
    return jnp.einsum("bpsd,lsd->bpld", x_BPLD, toeplitz_LLD)


class LinguisticEncoder(nnx.Module):
    """Stacked filter-bank frames to vectors every 60 ms. CMVN vectors are stored here and are never trained."""

    def __init__(self, config: LinguisticConfig, *, rngs: nnx.Rngs):
        self.cmvn_shift = weight(rngs, (config.features,), (NORM,), zeros)
        self.cmvn_scale = weight(rngs, (config.features,), (NORM,), ones)
        init = normal(config.embed**-0.5 / math.sqrt(2 * config.layers))
        self.first = SanmBlock(config, config.features, FEATURES, rngs=rngs, init=init)
        self.blocks = stack(
            lambda r: SanmBlock(config, config.embed, EMBED, rngs=r, init=init), config.layers - 1, rngs
        )
        self.after_norm = LayerNorm(config.embed, config.norm_eps, rngs=rngs)
        self.config = config

    def normalise(self, frames: Float[Array, "*B M"]) -> Float[Array, "*B M"]:
        """``dsp.fbank`` frames to encoder features: ``(x + shift) * scale`` with the stored CMVN statistics."""
        shift, scale = jax.lax.stop_gradient((self.cmvn_shift[...], self.cmvn_scale[...]))
        return (frames + shift) * scale

    def __call__(self, feats_BTM: Float[Array, "B T M"], lengths_B: Int[Array, "B"]) -> Float[Array, "B T D"]:
        """Encode normalised features; rows beyond a length are padding: they change nothing and come out as zeros."""
        B, T, _ = feats_BTM.shape
        x_BPLD = self._windows(feats_BTM, lengths_B)[:, :, self.config.overlap :]
        x_BTD = self.after_norm(x_BPLD.reshape(B, -1, self.config.embed)[:, :T])
        return jnp.where(_within(T, lengths_B)[..., None], x_BTD, 0.0)

    def windows(self, feats_BTM: Float[Array, "B T M"], lengths_B: Int[Array, "B"]) -> Float[Array, "B P L D"]:
        """Everything computed for each chunk: ``overlap`` recomputed frames, then its own."""
        return self.after_norm(self._windows(feats_BTM, lengths_B))

    def _windows(self, feats_BTM: jax.Array, lengths_B: jax.Array) -> jax.Array:
        c = self.config
        T = feats_BTM.shape[1]
        P = -(-T // c.chunk)
        real_BT = _within(T, lengths_B)
        x_BTM = _scaled(jnp.where(real_BT[..., None], feats_BTM, 0.0), jnp.arange(1, T + 1), c)
        # The stream starts with frames of zeros, without position: they are attended to.
        pad = (c.overlap, P * c.chunk - T)
        x_BTM = jnp.pad(x_BTM, ((0, 0), pad, (0, 0)))
        real_BT = jnp.pad(real_BT, ((0, 0), pad), constant_values=((0, 0), (True, False)))
        real_BPL = cut_windows(real_BT, c)
        seen_PS = jnp.repeat(np.arange(P)[:, None] + np.arange(-c.look_back, 0) >= 0, c.chunk, axis=1)
        seen_BPS = jnp.broadcast_to(seen_PS, (*real_BPL.shape[:1], *seen_PS.shape))
        bias_BPS = _bias(jnp.concatenate([seen_BPS, real_BPL], axis=2))
        keep_BPL1 = real_BPL[..., None].astype(x_BTM.dtype)

        def mix(block: SanmBlock, q, k, v):
            v = v * keep_BPL1
            keys = jnp.concatenate([look_back(k, c), k], axis=2)
            return block.mix(q, keys, jnp.concatenate([look_back(v, c), v], axis=2), v, bias_BPS)

        def step(x, block: SanmBlock, _):
            x = block.feed_forward(x + mix(block, *block.project(x)))
            return constrain(x, BATCH, None, None, None), None

        # Before the first attention a frame is the same in every window: project it once.
        first = mix(self.first, *(cut_windows(a, c) for a in self.first.project(x_BTM)))
        x = constrain(self.first.feed_forward(first), BATCH, None, None, None)  # as the scan's carry, see codec/s3
        return scan(step, x, self.blocks)[0]

    def init_state(self, batch: int) -> EncoderState:
        """The state before the first chunk of ``batch`` parallel streams."""
        c = self.config
        S = c.look_back * c.chunk
        return EncoderState(
            chunk=jnp.zeros((), jnp.int32),
            overlap_BLM=jnp.zeros((batch, c.overlap, c.features)),
            first_key_BSD=jnp.zeros((batch, S, c.embed)),
            first_value_BSD=jnp.zeros((batch, S, c.embed)),
            keys=jnp.zeros((c.layers - 1, batch, S, c.embed)),
            values=jnp.zeros((c.layers - 1, batch, S, c.embed)),
        )

    def stream(
        self, state: EncoderState, feats_BTM: Float[Array, "B chunk M"], lengths_B: Int[Array, "B"]
    ) -> tuple[Float[Array, "B chunk D"], EncoderState]:
        """Encode one chunk; fewer than ``chunk`` frames (by ``lengths_B``) are allowed in a stream's last one only.

        Equal to the same rows of ``__call__`` up to float32 rounding.
        """
        c = self.config
        real_BT = _within(c.chunk, lengths_B)
        positions = state.chunk * c.chunk + jnp.arange(1, c.chunk + 1)
        new_BTM = _scaled(jnp.where(real_BT[..., None], feats_BTM, 0.0), positions, c)
        x_BPLM = jnp.concatenate([state.overlap_BLM, new_BTM], axis=1)[:, None]
        real_BL = jnp.pad(real_BT, ((0, 0), (c.overlap, 0)), constant_values=True)
        seen_S = jnp.repeat(state.chunk + np.arange(-c.look_back, 0) >= 0, c.chunk)
        seen_BS = jnp.broadcast_to(seen_S, (len(real_BL), len(seen_S)))
        bias_BPS = _bias(jnp.concatenate([seen_BS, real_BL], axis=1))[:, None]
        keep_BPL1 = real_BL[:, None, :, None].astype(x_BPLM.dtype)

        def mix(block: SanmBlock, x, key_BSD, value_BSD):
            q, k, v = block.project(x)
            v = v * keep_BPL1
            keys, values = (jnp.concatenate([old[:, None], a], 2) for old, a in ((key_BSD, k), (value_BSD, v)))
            y = block.mix(q, keys, values, v, bias_BPS)
            return y, keys[:, 0, c.chunk : -c.overlap], values[:, 0, c.chunk : -c.overlap]

        def step(x, block: SanmBlock, cache):
            y, key, value = mix(block, x, *cache)
            return block.feed_forward(x + y), (key, value)

        x, first_key, first_value = mix(self.first, x_BPLM, state.first_key_BSD, state.first_value_BSD)
        x, (keys, values) = scan(step, self.first.feed_forward(x), self.blocks, (state.keys, state.values))
        overlap = x_BPLM[:, 0, -c.overlap :]
        out_BTD = jnp.where(real_BT[..., None], self.after_norm(x[:, 0, c.overlap :]), 0.0)
        return out_BTD, EncoderState(state.chunk + 1, overlap, first_key, first_value, keys, values)


def cut_windows(x_BT: Float[Array, "B T ..."], config: LinguisticConfig) -> Float[Array, "B P L ..."]:
    """Windows of ``overlap + chunk`` frames every ``chunk``, from a sequence that begins with the first overlap."""
    c = config
    B, total = x_BT.shape[:2]
    P, pieces = (total - c.overlap) // c.chunk, -(-(c.overlap + c.chunk) // c.chunk)
    padded = jnp.pad(x_BT, ((0, 0), (0, (P + pieces - 1) * c.chunk - total), *(((0, 0),) * (x_BT.ndim - 2))))
    blocks = padded.reshape(B, P + pieces - 1, c.chunk, *x_BT.shape[2:])
    return jnp.concatenate([blocks[:, i : i + P] for i in range(pieces)], axis=2)[:, :, : c.overlap + c.chunk]


def look_back(x_BPLD: Float[Array, "B P L D"], config: LinguisticConfig) -> Float[Array, "B P S D"]:
    """For each window, the first ``chunk`` frames of the ``look_back`` windows before it, oldest first."""
    P = x_BPLD.shape[1]
    heads = jnp.pad(x_BPLD[:, :, : config.chunk], ((0, 0), (config.look_back, 0), (0, 0), (0, 0)))
    return jnp.concatenate([heads[:, i : i + P] for i in range(config.look_back)], axis=2)


def _scaled(x_BTM: jax.Array, positions_T: jax.Array, config: LinguisticConfig) -> jax.Array:
    """Features times sqrt(embed) plus sinusoids of the positions, which count from 1."""
    half = config.features // 2
    rates = (10000.0 ** (-np.arange(half) / (half - 1))).astype(np.float32)
    angles = positions_T[:, None].astype(jnp.float32) * rates
    return x_BTM * config.embed**0.5 + jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _within(T: int, lengths_B: jax.Array) -> Bool[Array, "B T"]:
    return jnp.arange(T)[None] < lengths_B[:, None]


def _bias(visible: Bool[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(visible, 0.0, -1e30)
