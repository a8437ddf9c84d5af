"""Conformer encoder of the flow: audio-token embeddings to hidden states.

The published ``ConformerEncoder`` of Step-Audio's cosyvoice (espnet relative positions, pre-norm, SiLU, no
convolution module, no macaron half). Attention is Transformer-XL (Dai et al. 2019, section 3.3). Difference:
padded keys are masked, so a row of a batch equals the row alone.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from aqaa_jax.config import FlowEncoderConfig
from aqaa_jax.nn.linear import Linear
from aqaa_jax.nn.norm import LayerNorm
from aqaa_jax.nn.params import normal, weight
from aqaa_jax.nn.stack import scan, stack
from aqaa_jax.sharding.axes import ACT_HEADS, BATCH, EMBED, FEATURES, HEAD_DIM, HEADS, LENGTH, MLP
from aqaa_jax.sharding.partition import constrain

MASKED = -1e30  # finite: a row without any real key gives a uniform average, not NaN


class RelativeAttention(nnx.Module):
    """Self-attention whose score adds a term of the distance between query and key."""

    def __init__(self, config: FlowEncoderConfig, *, rngs: nnx.Rngs):
        if config.embed % config.heads:
            raise ValueError(f"encoder width {config.embed} does not split into {config.heads} heads")
        embed, shape = config.embed, (config.heads, config.embed // config.heads)
        self.query = Linear(embed, embed, (EMBED, HEADS), rngs=rngs)
        self.key = Linear(embed, embed, (EMBED, HEADS), rngs=rngs)
        self.value = Linear(embed, embed, (EMBED, HEADS), rngs=rngs)
        self.position = Linear(embed, embed, (EMBED, HEADS), rngs=rngs, use_bias=False)
        self.out = Linear(embed, embed, (HEADS, EMBED), rngs=rngs)
        self.content_bias = weight(rngs, shape, (HEADS, HEAD_DIM), normal())
        self.position_bias = weight(rngs, shape, (HEADS, HEAD_DIM), normal())
        self.heads = config.heads

    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        distances_RD: Float[Array, "R D"],
        mask_BL: Float[Array, "B L"] | None,
    ) -> Float[Array, "B L D"]:
        batch, length, embed = x_BLD.shape
        split = (batch, length, self.heads, embed // self.heads)
        q_BLNH = constrain(self.query(x_BLD).reshape(split), BATCH, LENGTH, ACT_HEADS, None)
        k_BSNH = constrain(self.key(x_BLD).reshape(split), BATCH, LENGTH, ACT_HEADS, None)
        v_BSNH = constrain(self.value(x_BLD).reshape(split), BATCH, LENGTH, ACT_HEADS, None)
        p_RNH = self.position(distances_RD).reshape(-1, *split[2:])
        content_BNLS = jnp.einsum("blnh,bsnh->bnls", q_BLNH + self.content_bias[...].astype(x_BLD.dtype), k_BSNH)
        distance_BNLR = jnp.einsum("blnh,rnh->bnlr", q_BLNH + self.position_bias[...].astype(x_BLD.dtype), p_RNH)
        scores_BNLS = (content_BNLS + _by_key(distance_BNLR)).astype(jnp.float32) / math.sqrt(split[3])
        if mask_BL is not None:
            scores_BNLS = jnp.where(mask_BL[:, None, None, :] > 0, scores_BNLS, MASKED)
        weights_BNLS = jax.nn.softmax(scores_BNLS, axis=-1).astype(x_BLD.dtype)
        y_BLNH = jnp.einsum("bnls,bsnh->blnh", weights_BNLS, v_BSNH)
        return self.out(y_BLNH.reshape(batch, length, embed))


def _by_key(distance_BNLR: Array) -> Array:
    """From columns by distance (L - 1 ... -(L - 1)) to columns by key: row ``i`` shifts left by ``L - 1 - i``."""
    batch, heads, length, columns = distance_BNLR.shape
    x = jnp.pad(distance_BNLR, ((0, 0), (0, 0), (0, 0), (1, 0)))
    x = x.reshape(batch, heads, columns + 1, length)[:, :, 1:]
    return x.reshape(batch, heads, length, columns)[..., :length]


def distance_table(length: int, embed: int) -> np.ndarray:
    """Sinusoids of the distances query - key = L - 1 ... -(L - 1), sine and cosine interleaved: (2L - 1, D)."""
    distance_R = np.arange(length - 1, -length, -1, dtype=np.float32)
    rate = np.exp(np.arange(0, embed, 2, dtype=np.float32) * np.float32(-math.log(10000.0) / embed))
    angle = distance_R[:, None] * rate
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(len(distance_R), embed)


class EncoderBlock(nnx.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))`` with SiLU."""

    def __init__(self, config: FlowEncoderConfig, *, rngs: nnx.Rngs):
        self.attention_norm = LayerNorm(config.embed, rngs=rngs)
        self.attention = RelativeAttention(config, rngs=rngs)
        self.mlp_norm = LayerNorm(config.embed, rngs=rngs)
        self.mlp_in = Linear(config.embed, config.mlp, (EMBED, MLP), rngs=rngs)
        self.mlp_out = Linear(config.mlp, config.embed, (MLP, EMBED), rngs=rngs)

    def __call__(self, x_BLD: Array, distances_RD: Array, mask_BL: Array | None) -> Array:
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), distances_RD, mask_BL)
        return x_BLD + self.mlp_out(jax.nn.silu(self.mlp_in(self.mlp_norm(x_BLD))))


class FlowEncoder(nnx.Module):
    """Embeddings (B, L, D) to hidden states (B, L, D), after the final norm; attention sees the whole row."""

    def __init__(self, config: FlowEncoderConfig, *, rngs: nnx.Rngs):
        self.embed = Linear(config.embed, config.embed, (FEATURES, EMBED), rngs=rngs)
        self.embed_norm = LayerNorm(config.embed, rngs=rngs)
        self.blocks = stack(lambda r: EncoderBlock(config, rngs=r), config.layers, rngs)
        self.norm = LayerNorm(config.embed, rngs=rngs)

    def __call__(
        self, x_BLD: Float[Array, "B L D"], mask_BL: Float[Array, "B L"] | None = None
    ) -> Float[Array, "B L D"]:
        embed = x_BLD.shape[-1]
        x_BLD = self.embed_norm(self.embed(x_BLD)) * math.sqrt(embed)
        distances_RD = jnp.asarray(distance_table(x_BLD.shape[1], embed), x_BLD.dtype)
        x_BLD, _ = scan(lambda x, block, _: (block(x, distances_RD, mask_BL), None), x_BLD, self.blocks)
        return self.norm(x_BLD)
