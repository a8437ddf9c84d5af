"""Length regulator of the flow: hidden states at token rate to ``mu`` at mel rate."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from aqaa_jax.nn.conv import Conv1d, GroupNorm, masked, mish
from aqaa_jax.sharding.axes import CHANNELS_IN, FEATURES


class LengthRegulator(nnx.Module):
    """Linear interpolation of the prompt and the target separately, then one convolution stack over both.

    The published ``InterpolateRegulator`` of Step-Audio's cosyvoice. Difference: rows of different lengths share
    a batch; every convolution sees zeros behind the end of a row, as it would see behind the row alone.
    """

    def __init__(self, channels: int, layers: int, *, rngs: nnx.Rngs):
        axes = (CHANNELS_IN, FEATURES)
        self.convs = nnx.List([Conv1d(channels, channels, 3, rngs=rngs, axes=axes) for _ in range(layers)])
        self.norms = nnx.List([GroupNorm(1, channels, rngs=rngs) for _ in range(layers)])
        self.out = Conv1d(channels, channels, 1, rngs=rngs, axes=axes)

    def __call__(
        self, x_BTM: Float[Array, "B T M"], mask_BT: Float[Array, "B T"] | None = None
    ) -> Float[Array, "B T M"]:
        """The convolution stack over interpolated states."""
        x_BTM = masked(x_BTM, mask_BT)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x_BTM = masked(mish(norm(conv(x_BTM), mask_BT)), mask_BT)
        return masked(self.out(x_BTM), mask_BT)


def interpolate(
    h_BLM: Float[Array, "B L M"],
    starts_B: Int[Array, "B"],
    lengths_B: Int[Array, "B"],
    frames_BT: Int[Array, "B T"],
    counts_B: Int[Array, "B"],
) -> Float[Array, "B T M"]:
    """Stretch ``lengths_B`` states from ``starts_B`` to ``counts_B`` frames and read the frames ``frames_BT``.

    Linear, corners not aligned: frame ``i`` reads position ``(i + 1/2) * length / count - 1/2``, clipped to the
    part. Frames outside ``[0, count)`` read a clipped position; the caller masks them. The two neighbours are
    read by a matrix of hat functions: gathers would make the gradient a slow scatter.
    """
    scale_B1 = (lengths_B / jnp.maximum(counts_B, 1)).astype(jnp.float32)[:, None]
    last_B1 = jnp.maximum(lengths_B - 1, 0).astype(jnp.float32)[:, None]
    position_BT = scale_B1 * (frames_BT.astype(jnp.float32) + 0.5) - 0.5
    position_BT = jnp.clip(position_BT, 0.0, last_B1)
    state_BL = (jnp.arange(h_BLM.shape[1]) - starts_B[:, None]).astype(jnp.float32)
    distance_BTL = jnp.abs(position_BT[:, :, None] - state_BL[:, None])
    hat_BTL = jnp.maximum(1.0 - distance_BTL, 0.0).astype(h_BLM.dtype)
    return jnp.einsum("btl,blm->btm", hat_BTL, h_BLM)
