"""The gated feed-forward layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aqaa_jax.nn.params import Initializer, fan_in, weight
from aqaa_jax.nn.project import project, project_each
from aqaa_jax.nn.remat import GATE, UP
from aqaa_jax.sharding.axes import ACT_MLP, BATCH, EMBED, LENGTH, MLP
from aqaa_jax.sharding.partition import constrain


class SwiGLU(nnx.Module):
    """``down(silu(gate(x)) * up(x))`` without biases (Shazeer 2020; published ``modeling_step1.py``)."""

    def __init__(
        self,
        embed: int,
        mlp: int,
        *,
        rngs: nnx.Rngs,
        out_init: Initializer | None = None,
        dtype: DTypeLike = jnp.float32,
    ):
        self.gate = weight(rngs, (embed, mlp), (EMBED, MLP), fan_in(), dtype)
        self.up = weight(rngs, (embed, mlp), (EMBED, MLP), fan_in(), dtype)
        self.down = weight(rngs, (mlp, embed), (MLP, EMBED), out_init or fan_in(), dtype)

    def __call__(self, x_BLD: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        gate_BLF, up_BLF = project_each(x_BLD, (self.gate, self.up))
        gate_BLF = checkpoint_name(constrain(gate_BLF, BATCH, LENGTH, ACT_MLP), GATE)
        up_BLF = checkpoint_name(constrain(up_BLF, BATCH, LENGTH, ACT_MLP), UP)
        return project(jax.nn.silu(gate_BLF) * up_BLF, self.down)
