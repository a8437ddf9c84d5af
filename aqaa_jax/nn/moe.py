"""A mixture of experts in place of the gated feed-forward layer: every token gets all the experts it chose."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from aqaa_jax.config import ExpertsConfig
from aqaa_jax.nn.exchange import move, plan_exchange
from aqaa_jax.nn.grouped_matmul import grouped_matmul
from aqaa_jax.nn.mlp import SwiGLU
from aqaa_jax.nn.params import fan_in, normal, weight
from aqaa_jax.nn.remat import EXPERT_GATE, EXPERT_IN, EXPERT_UP
from aqaa_jax.nn.router import ExpertStats, check_experts, route
from aqaa_jax.sharding.axes import ACT_EXPERTS, BATCH, EMBED, EXPERT_EMBED, EXPERTS, LENGTH, MLP, NORM
from aqaa_jax.sharding.manual import Gather, at_use, gathered, split_over
from aqaa_jax.sharding.partition import mesh_axes, per_shard


class RouterBias(nnx.Variable):
    """A weight that no gradient moves: ``balanced`` does, once a step."""


class MoE(nnx.Module):
    """The sum over a token's ``top_k`` experts of weight times SwiGLU, and a shared SwiGLU if there is one.

    Dropless: tokens are sorted by expert and multiplied group by group (``nn/grouped_matmul.py``), whatever the sizes
    of the groups. Router in float32. Where experts are split over devices, rows travel to them and back
    (``nn/exchange.py``), and a device has room for all rows of its group of devices: the only size that drops none.
    With one expert it is the dense layer exactly.
    """

    def __init__(
        self,
        embed: int,
        config: ExpertsConfig,
        *,
        rngs: nnx.Rngs,
        out_scale: float = 1.0,
        dtype: DTypeLike = jnp.float32,
    ):
        """``out_scale``: of the variance of the weights that write to the residual stream."""
        check_experts(config)
        c = self.config = config
        into, out = (EXPERTS, EXPERT_EMBED, MLP), (EXPERTS, MLP, EXPERT_EMBED)
        self.router = weight(rngs, (embed, c.experts), (EMBED, NORM), normal(), dtype)
        self.bias = RouterBias(jnp.zeros(c.experts, jnp.float32), axes=(NORM,)) if c.bias_rate else None
        self.gate = weight(rngs, (c.experts, embed, c.mlp), into, fan_in(batch_axis=(0,)), dtype)
        self.up = weight(rngs, (c.experts, embed, c.mlp), into, fan_in(batch_axis=(0,)), dtype)
        self.down = weight(rngs, (c.experts, c.mlp, embed), out, fan_in(scale=out_scale, batch_axis=(0,)), dtype)
        shared = {"rngs": rngs, "out_init": fan_in(scale=out_scale), "dtype": dtype}
        self.shared = SwiGLU(embed, c.shared_mlp, **shared) if c.shared_mlp else None

    def __call__(
        self, x_BLD: Float[Array, "B L D"], real_BL: Bool[Array, "B L"] | None = None
    ) -> tuple[Float[Array, "B L D"], ExpertStats]:
        """Tokens outside ``real_BL`` get their experts too, but do not count in the statistics."""
        pieces = any(split_over(self.router))
        router_DE = gathered(self.router, jnp.float32) if pieces else at_use(self.router).astype(jnp.float32)
        logits_BLE = jnp.einsum("bld,de->ble", x_BLD.astype(jnp.float32), router_DE, precision="highest")
        bias_E = None if self.bias is None else self.bias[...]
        experts_BLk, weights_BLk, stats = route(logits_BLE, bias_E, self.config, real_BL)
        token = (BATCH, LENGTH, None)
        over = split_over(self.gate), split_over(self.up), split_over(self.down)
        apply = per_shard(
            functools.partial(apply_experts, experts=self.config.experts, over=over),
            (token, token, token, (ACT_EXPERTS, None, MLP), (ACT_EXPERTS, None, MLP), (ACT_EXPERTS, MLP, None)),
            (token, (BATCH, LENGTH)),
        )
        # Cast before they are gathered: half the bytes.
        gate_EDF, up_EDF, down_EFD = (w[...].astype(x_BLD.dtype) for w in (self.gate, self.up, self.down))
        y_BLD, answered = apply(x_BLD, experts_BLk, weights_BLk, gate_EDF, up_EDF, down_EFD)
        dropped = experts_BLk.size - jnp.sum(answered)
        if self.shared is not None:
            y_BLD = y_BLD + self.shared(x_BLD)
        return y_BLD, stats._replace(dropped=dropped.astype(jnp.float32))


def apply_experts(
    x_BLD: Float[Array, "B L D"],
    experts_BLk: Int[Array, "B L k"],
    weights_BLk: Float[Array, "B L k"],
    gate_EDF: Float[Array, "E D F"],
    up_EDF: Float[Array, "E D F"],
    down_EFD: Float[Array, "E F D"],
    *,
    experts: int,
    over: tuple[Gather, Gather, Gather] = ((), (), ()),
) -> tuple[Float[Array, "B L D"], Int[Array, "1 1"]]:
    """The weighted sum of the chosen experts' outputs, and how many choices were answered by the experts given here.

    On each device of a mesh: its tokens, its part of the ``experts`` there are (in the order of the devices) and
    of their width. ``over``: of weights in pieces (``sharding/manual.py``). ``R``: one row for every choice of a token.
    """
    (B, L, k), D = experts_BLk.shape, x_BLD.shape[-1]
    axes, width_axes = mesh_axes(ACT_EXPERTS), mesh_axes(MLP)
    devices = jax.lax.axis_size(axes) if axes else 1
    # Choices in front of tokens: in a TPU's tiles of rows and columns a small axis in between is mostly padding.
    choice_R, weight_R = (x.reshape(B * L, k).T.reshape(-1) for x in (experts_BLk, weights_BLk))
    order_R = jnp.argsort(choice_R)
    place_kT, token_R = jnp.argsort(order_R).reshape(k, B * L), order_R % (B * L)
    sizes_E = jnp.sum(choice_R[:, None] == jnp.arange(experts), axis=0, dtype=jnp.int32)
    rows_RD = spread(x_BLD.reshape(B * L, D), token_R, place_kT)
    weight_R1 = spread(weight_R[:, None], order_R, place_kT.reshape(1, -1))
    exchange = plan_exchange(sizes_E, axes) if axes else None
    if exchange is not None:
        there = functools.partial(
            move, out=exchange.there, home=exchange.back, count=len(choice_R) * devices, axes=axes
        )
        rows_RD, weight_R1, sizes_E = there(rows_RD), there(weight_R1), exchange.sizes_E
        rows_RD = checkpoint_name(rows_RD, EXPERT_IN)
    rows_RD, again_RD = fork(rows_RD)
    gate_RF = checkpoint_name(grouped_matmul(rows_RD, gate_EDF, sizes_E, over[0], len(choice_R)), EXPERT_GATE)
    up_RF = checkpoint_name(grouped_matmul(again_RD, up_EDF, sizes_E, over[1], len(choice_R)), EXPERT_UP)
    # Weighed before the last product, not after: the gradient of the weights then needs no output of the experts.
    hidden_RF = (jax.nn.silu(gate_RF) * up_RF * weight_R1).astype(x_BLD.dtype)
    rows_RD = grouped_matmul(hidden_RF, down_EFD, sizes_E, over[2], len(choice_R))
    if exchange is not None:
        rows_RD = move(rows_RD, exchange.back, exchange.there, len(choice_R), axes)
    y_BLD = collect(rows_RD, token_R, place_kT).reshape(B, L, D)
    if width_axes:
        y_BLD = jax.lax.psum(y_BLD, width_axes)
    return y_BLD, jnp.sum(sizes_E).reshape(1, 1)


@jax.custom_vjp
def spread(x_TD: Float[Array, "T D"], token_R: Int[Array, "R"], place_kT: Int[Array, "k T"]) -> Float[Array, "R D"]:
    """Row r is token ``token_R[r]``; ``place_kT`` has the k places of every token.

    The gradient is ``collect``, and that of ``collect`` this: of a plain gather it would be a scatter-add, which a TPU
    does row by row.
    """
    return x_TD[token_R]


@jax.custom_vjp
def collect(rows_RD: Float[Array, "R D"], token_R: Int[Array, "R"], place_kT: Int[Array, "k T"]) -> Float[Array, "T D"]:
    """The sum over the k rows of every token, added up in float32."""
    first, *others = rows_RD[place_kT]
    total_TD = first.astype(jnp.float32)
    for row_TD in others:  # written out it is one pass; as a sum over an axis the TPU takes five times as long
        total_TD += row_TD
    return total_TD.astype(rows_RD.dtype)


def _both(forward, backward):
    return (
        lambda x, token_R, place_kT: (forward(x, token_R, place_kT), (token_R, place_kT)),
        lambda kept, g: (backward(g, *kept), None, None),
    )


@jax.custom_vjp
def fork(x: Float[Array, "*B"]) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """``x`` twice, for two uses whose gradients are added up in float32 and rounded once."""
    return x, x


def _join(_: None, gradients: tuple[jax.Array, jax.Array]) -> tuple[jax.Array]:
    first, second = gradients
    return ((first.astype(jnp.float32) + second).astype(first.dtype),)


fork.defvjp(lambda x: (fork(x), None), _join)
spread.defvjp(*_both(spread, collect))
collect.defvjp(*_both(collect, spread))


def balanced(bias_E: Float[Array, "*E"], load_E: Float[Array, "*E"], rate: float) -> Float[Array, "*E"]:
    """The bias after a step: ``rate`` up for experts below the mean load of their layer, down for those above it.

    Balancing without an auxiliary loss (Wang et al. 2024, arXiv 2408.15664); any leading axes are layers.
    """
    return bias_E + rate * jnp.sign(jnp.mean(load_E, axis=-1, keepdims=True) - load_E)
