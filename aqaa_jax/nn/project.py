"""Matrix products of activations with weights of several axes."""

from __future__ import annotations

import functools
import math

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aqaa_jax.nn.int8 import Int8Weight
from aqaa_jax.sharding.manual import Gather, gather, scatter, split_over


def project(
    x: Float[Array, "*B in"],
    weight: Float[Array, "..."] | nnx.Variable | Int8Weight,
    *,
    in_axes: int = 1,
    out_dtype: DTypeLike | None = None,
) -> Float[Array, "*B out"]:
    """Contract the last ``in_axes`` axes of ``x`` with the first ones of ``weight``, cast to the dtype of ``x``.

    The product runs on two-dimensional views: with the batch axes apart, the CPU compiler writes a
    transposed copy of every activation for the weight gradient, which doubled the time of a training step.
    A weight that is in pieces (``sharding/manual.py``) is gathered, in the forward pass and again in the backward pass.
    """
    batch = x.shape[: x.ndim - in_axes]
    if isinstance(weight, Int8Weight):
        y_TF = weight.matmul(x.reshape(math.prod(batch), -1)).astype(out_dtype or x.dtype)
        return y_TF.reshape(*batch, *weight.scale[...].shape)
    over = split_over(weight) if isinstance(weight, nnx.Variable) else ()
    value = (weight.get_value() if isinstance(weight, nnx.Variable) else weight).astype(x.dtype)
    x_TD = x.reshape(math.prod(batch), -1)
    if any(over):
        y_TF = _of_pieces(x_TD, value, over, in_axes, out_dtype)
        return y_TF.reshape(*batch, *value.shape[in_axes:])
    y_TF = jax.lax.dot(x_TD, _matrix(value, in_axes), preferred_element_type=out_dtype)
    return y_TF.reshape(*batch, *value.shape[in_axes:])


def _matrix(weight: jax.Array, in_axes: int) -> jax.Array:
    inner, outer = weight.shape[:in_axes], weight.shape[in_axes:]
    return weight.reshape(math.prod(inner), math.prod(outer))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _of_pieces(x_TD: jax.Array, piece: jax.Array, over: Gather, in_axes: int, out_dtype: DTypeLike | None) -> jax.Array:
    return _forward(x_TD, piece, over, in_axes, out_dtype)[0]


def _forward(x_TD, piece, over, in_axes, out_dtype):
    weight_DF = _matrix(gather(piece, over), in_axes)
    return jax.lax.dot(x_TD, weight_DF, preferred_element_type=out_dtype), (x_TD, piece)


def _backward(over, in_axes, out_dtype, saved, grad_TF):
    """The whole weight is not kept for this: a stack of layers would keep all of them."""
    x_TD, piece = saved
    grad_TF = grad_TF.astype(x_TD.dtype)
    whole = gather(piece, over)
    grad_TD = jax.lax.dot_general(grad_TF, _matrix(whole, in_axes), (((1,), (1,)), ((), ())))
    weight_grad = jax.lax.dot_general(x_TD, grad_TF, (((0,), (0,)), ((), ()))).reshape(whole.shape)
    return jax.lax.optimization_barrier(grad_TD), scatter(weight_grad, over)


_of_pieces.defvjp(_forward, _backward)
