"""One pre-norm block of Step1."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from aqaa_jax.config import DecoderConfig
from aqaa_jax.nn.attention import Attention, CacheSlots
from aqaa_jax.nn.mlp import SwiGLU
from aqaa_jax.nn.norm import RMSNorm
from aqaa_jax.nn.params import fan_in
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
        self.mlp = SwiGLU(c.embed, c.mlp, rngs=rngs, out_init=fan_in(scale=shrink), dtype=dtype)

    def __call__(
        self, x_BLD: Float[Array, "B L D"], distance_BLS: Float[Array, "#B L S"], cache: CacheSlots | None = None
    ) -> tuple[Float[Array, "B L D"], CacheSlots | None]:
        attended_BLD, cache = self.attention(self.attention_norm(x_BLD), distance_BLS, cache)
        x_BLD = constrain(x_BLD + attended_BLD, BATCH, ACT_LENGTH, ACT_EMBED)
        x_BLD = constrain(x_BLD + self.mlp(self.mlp_norm(x_BLD)), BATCH, ACT_LENGTH, ACT_EMBED)
        return x_BLD, cache
