"""Declaring weights: shape, logical axes and initialiser in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

Initializer = Callable[..., jax.Array]
zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones


def normal(stddev: float = 0.02) -> Initializer:
    return jax.nn.initializers.normal(stddev)


def fan_in(in_axis: Sequence[int] | int = -2, scale: float = 1.0, batch_axis: Sequence[int] = ()) -> Initializer:
    """Truncated normal whose variance is ``scale / fan_in`` over the input axes; ``batch_axis`` is on neither side."""
    return jax.nn.initializers.variance_scaling(
        scale, "fan_in", "truncated_normal", in_axis=in_axis, batch_axis=batch_axis
    )


def weight(
    rngs: nnx.Rngs,
    shape: Sequence[int],
    axes: Sequence[str],
    init: Initializer,
    dtype: DTypeLike = jnp.float32,
) -> nnx.Param:
    """A parameter of ``shape`` whose dimensions carry the logical ``axes`` (``sharding/axes.py``).

    Raises ``ValueError`` if there is not one axis per dimension.
    """
    if len(axes) != len(shape):
        raise ValueError(f"weight of shape {tuple(shape)} declares axes {tuple(axes)}")
    return nnx.Param(init(rngs(), tuple(shape), dtype), axes=tuple(axes))
