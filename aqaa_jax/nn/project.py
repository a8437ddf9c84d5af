"""Matrix products of activations with weights of several axes."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aqaa_jax.nn.int8 import Int8Weight
from aqaa_jax.sharding.manual import Gather, apart, gather, scatter, split_over
from aqaa_jax.sharding.partition import context

Split = tuple[str | None, str | None]  # logical axes of a matrix that the compiler splits


def project(
    x: Float[Array, "*B in"],
    weight: Float[Array, "..."] | nnx.Variable | Int8Weight,
    *,
    in_axes: int = 1,
    out_dtype: DTypeLike | None = None,
) -> Float[Array, "*B out"]:
    """Contract the last ``in_axes`` axes of ``x`` with the first ones of ``weight``, cast to the dtype of ``x``.

    The batch axes of ``x`` are merged: with them apart, the CPU compiler writes a transposed copy of every activation
    for the weight gradient, which doubled the time of a training step. The axes of the weight are not: merging heads
    with their width is a copy of the weight on a TPU.
    A weight that is in pieces (``sharding/manual.py``) is gathered, in the forward pass and again in the backward pass.
    """
    batch = x.shape[: x.ndim - in_axes]
    if isinstance(weight, Int8Weight):
        y_TF = weight.matmul(x.reshape(math.prod(batch), -1)).astype(out_dtype or x.dtype)
        return y_TF.reshape(*batch, *weight.scale[...].shape)
    over = split_over(weight) if isinstance(weight, nnx.Variable) else ()
    stored: Any = weight.get_value() if isinstance(weight, nnx.Variable) else weight
    value = stored.astype(x.dtype)
    if isinstance(weight, nnx.Variable) and any(over):
        x_TD = x.reshape(math.prod(batch), -1)
        axes = weight.get_metadata()["axes"][-value.ndim :]  # in a scan the value has lost the leading one
        matrix = _rows_first(value, over, in_axes)
        inner, outer = _split_by_compiler(axes[:in_axes]), _split_by_compiler(axes[in_axes:])
        names = (outer, inner) if matrix[2] else (inner, outer)
        gathered_TF: Any = _of_pieces(x_TD, *matrix, names, out_dtype)
        width = value.shape[in_axes:] if any(over[:in_axes]) else (*value.shape[in_axes:-1], -1)
        return gathered_TF.reshape(*batch, *width)
    x_T = x.reshape(math.prod(batch), *value.shape[:in_axes])
    axes = (tuple(range(1, in_axes + 1)), tuple(range(in_axes)))
    y_T = jax.lax.dot_general(x_T, value, (axes, ((), ())), preferred_element_type=out_dtype)
    return y_T.reshape(*batch, *value.shape[in_axes:])


def _rows_first(piece: jax.Array, over: Gather, in_axes: int) -> tuple[jax.Array, tuple[str, ...], int]:
    """A piece as a matrix whose rows are what is missing, over which mesh axes, and which axis (0, 1) is contracted.

    Rows of a matrix arrive where they belong; columns would have to be sorted in, a copy of the whole weight.
    """
    dims = [i for i, names in enumerate(over) if names]
    if dims not in ([0], [len(over) - 1]):
        raise ValueError(f"a weight in pieces along the axes {dims} of {len(over)}; expected its first or its last one")
    inner, outer = math.prod(piece.shape[:in_axes]), math.prod(piece.shape[in_axes:])
    if dims == [0]:
        return piece.reshape(inner, outer), over[0], 0
    if in_axes < len(over) - 1:
        raise ValueError(f"a weight of {len(over) - in_axes} output axes in pieces along the last; expected one axis")
    return piece.reshape(inner, outer).T, over[-1], 1


def _split_by_compiler(axes: tuple[str, ...]) -> str | None:
    """The logical axis along which the compiler splits a dimension that was merged of ``axes``."""
    here = context()
    split = [axis for axis in axes if here is not None and here.left_rules().get(axis)]
    if split not in ([], [axes[0]]):
        raise ValueError(f"axes {axes} merged into one cannot be split along {split}; expected the first of them")
    return split[0] if split else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _of_pieces(
    x_TD: jax.Array,
    piece: jax.Array,
    over: tuple[str, ...],
    contracted: int,
    names: Split,
    out_dtype: DTypeLike | None,
) -> jax.Array:
    return _forward(x_TD, piece, over, contracted, names, out_dtype)[0]


def _forward(x_TD, piece, over, contracted, names, out_dtype):
    """The barriers, here and below, keep norms and gates out of the products, which run slower with them inside."""
    x_TD = jax.lax.optimization_barrier(x_TD)
    whole = apart(gather, piece, (over, ()), names)
    y_TF = jax.lax.dot_general(x_TD, whole, (((1,), (contracted,)), ((), ())), preferred_element_type=out_dtype)
    return y_TF, (x_TD, piece)


def _backward(over, contracted, names, out_dtype, saved, grad_TF):
    """The whole weight is not kept for this: a stack of layers would keep all of them."""
    x_TD, piece = saved
    x_TD, grad_TF = jax.lax.optimization_barrier((x_TD, grad_TF.astype(x_TD.dtype)))
    whole = apart(gather, piece, (over, ()), names)
    grad_TD = jax.lax.dot_general(grad_TF, whole, (((1,), (1 - contracted,)), ((), ())))
    rows, columns = (grad_TF, x_TD) if contracted else (x_TD, grad_TF)
    weight_grad = jax.lax.dot_general(rows, columns, (((0,), (0,)), ((), ())))
    return jax.lax.optimization_barrier(grad_TD), apart(scatter, weight_grad, (over, ()), names)


_of_pieces.defvjp(_forward, _backward)
