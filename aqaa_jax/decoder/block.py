"""One pre-norm block of Step1."""

from __future__ import annotations

from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from aqaa_jax.config import DecoderConfig
from aqaa_jax.kernels.places import Places
from aqaa_jax.nn.attention import Attention, CacheSlots
from aqaa_jax.nn.mlp import SwiGLU
from aqaa_jax.nn.moe import MoE
from aqaa_jax.nn.norm import RMSNorm
from aqaa_jax.nn.params import fan_in
from aqaa_jax.nn.remat import RESIDUAL
from aqaa_jax.nn.router import ExpertStats
from aqaa_jax.sharding.axes import ACT_EMBED, ACT_LENGTH, BATCH
from aqaa_jax.sharding.partition import constrain


class Block(nnx.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))`` (published ``modeling_step1.py``).

    Both layers that write to the residual stream are born smaller, by 1 / sqrt(2 * layers), so that the
    stream keeps its size in a deep stack (GPT-2).
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        c, dtype = config, config.param_dtype
        shrink = 1.0 / (2 * c.layers)  # of the variance
        self.attention_norm = RMSNorm(c.embed, c.norm_eps, rngs=rngs, dtype=dtype)
        self.attention = Attention(
            c.embed,
            c.heads,
            c.kv_heads,
            c.head_dim,
            rngs=rngs,
            out_init=fan_in((0, 1), shrink),
            slopes=c.alibi_slopes,
            dtype=dtype,
        )
        self.mlp_norm = RMSNorm(c.embed, c.norm_eps, rngs=rngs, dtype=dtype)
        if c.experts is None:
            self.mlp = SwiGLU(c.embed, c.mlp, rngs=rngs, out_init=fan_in(scale=shrink), dtype=dtype)
        else:
            self.mlp = MoE(c.embed, c.experts, rngs=rngs, out_scale=shrink, dtype=dtype)

    def __call__(
        self, x_BLD: Float[Array, "B L D"], places: Places, cache: CacheSlots | None = None
    ) -> tuple[Float[Array, "B L D"], CacheSlots | None, ExpertStats | None]:
        """The new residual stream and cache, and what the experts, if any, say of their tokens."""
        attended_BLD, cache = self.attention(self.attention_norm(x_BLD), places, cache)
        x_BLD = checkpoint_name(constrain(x_BLD + attended_BLD, BATCH, ACT_LENGTH, ACT_EMBED), RESIDUAL)
        normed_BLD, stats = self.mlp_norm(x_BLD), None
        if isinstance(self.mlp, MoE):
            segments_BL = places.query_segments_BL
            y_BLD, stats = self.mlp(normed_BLD, None if segments_BL is None else segments_BL != 0)
        else:
            y_BLD = self.mlp(normed_BLD)
        return constrain(x_BLD + y_BLD, BATCH, ACT_LENGTH, ACT_EMBED), cache, stats
