"""Matrix products of activations with weights of several axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aqaa_jax.nn.int8 import Int8Weight
from aqaa_jax.nn.ring import is_waited_for, products_in_parts, scattered_product
from aqaa_jax.sharding.axes import ACT_LENGTH, BATCH, LENGTH
from aqaa_jax.sharding.manual import Gather, gather, scatter, split, split_over
from aqaa_jax.sharding.partition import mesh_axes, per_shard

Weights = Sequence[nnx.Variable | Int8Weight | jax.Array]


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
    if isinstance(weight, nnx.Variable) and any(split_over(weight)):
        return _by_hand(x, [weight], in_axes, out_dtype, first=False)[0]
    stored: Any = weight.get_value() if isinstance(weight, nnx.Variable) else weight
    value = stored.astype(x.dtype)
    x_T = x.reshape(math.prod(batch), *value.shape[:in_axes])
    axes = (tuple(range(1, in_axes + 1)), tuple(range(in_axes)))
    y_T = jax.lax.dot_general(x_T, value, (axes, ((), ())), preferred_element_type=out_dtype)
    return y_T.reshape(*batch, *value.shape[in_axes:])


def project_each(x: Float[Array, "*B in"], weights: Weights, *, first: bool = False) -> list[Float[Array, "*B out"]]:
    """``project`` of one ``x`` with several weights: where they are in pieces, ``x`` travels once for all of them.

    ``first``: no product of their block comes before, to hide behind it that their weights are gathered.
    """
    variables = [w for w in weights if isinstance(w, nnx.Variable) and any(split_over(w))]
    if len(variables) == len(weights):
        return _by_hand(x, variables, 1, None, first)
    return [project(x, w) for w in weights]


class How(NamedTuple):
    """What products by hand do on one device, beside multiplying; mesh axes."""

    over: tuple[Gather, ...]  # per weight: where its pieces are
    positions: tuple[str, ...]  # that ``x`` is gathered over along the positions
    summed: tuple[str, ...]  # that the products are added up over, whole on every device
    cut: tuple[str, ...]  # that they are added up over and cut into positions
    in_axes: int
    out_dtype: DTypeLike | None
    first: bool  # of their block: nothing before them hides the gather of their weights


def _by_hand(
    x: jax.Array, weights: Sequence[nnx.Variable], in_axes: int, out_dtype: DTypeLike | None, first: bool
) -> list:
    """The products on each device's part of all that is split, by whomever: no collective is left to the compiler.

    Pieces of a weight are gathered over the mesh axes whose devices have rows or positions of their own; over the
    others (tensor) its inputs or its outputs stay split. With the residual stream split over positions there, ``x`` is
    gathered before the products or they are added up and cut into positions behind them (Korthikanti et al. 2022,
    "sequence parallelism").
    """
    batch = x.shape[: x.ndim - in_axes]
    positions = tuple(a for a in mesh_axes(ACT_LENGTH) if a not in mesh_axes(LENGTH))
    splits = [split(weight) for weight in weights]
    inner = splits[0].kept[:in_axes]
    summed = tuple(a for axis in inner if axis for a in mesh_axes(axis))
    over = tuple(of.over for of in splits)
    where = ((), (), summed) if summed and positions else (() if summed else positions, summed, ())
    how = How(over, *where, in_axes, out_dtype, first)
    x_axes = (BATCH, LENGTH if summed else ACT_LENGTH, *inner)
    y_axes = tuple((BATCH, ACT_LENGTH if how.cut else LENGTH, *of.kept[in_axes:]) for of in splits)
    in_specs = (x_axes, *(of.axes for of in splits))
    together = per_shard(lambda x, *pieces: _products(x, pieces, how), in_specs, y_axes)
    x_BL = x if len(batch) == 2 else x.reshape(1, math.prod(batch), *x.shape[len(batch) :])
    ys = together(x_BL, *(weight.get_value().astype(x.dtype) for weight in weights))
    return [y.reshape(*batch, *y.shape[2:]) for y in ys]


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _products(x: jax.Array, pieces: tuple[jax.Array, ...], how: How) -> tuple[jax.Array, ...]:
    return _forward(x, pieces, how)[0]


def _forward(x, pieces, how):
    """The barriers, here and below, keep norms and gates out of the products, which run slower with them inside."""
    x = jax.lax.optimization_barrier(x)
    x_TD, batch = _tokens(gather(x, ((), how.positions)), how.in_axes)
    ys = []
    for piece, over in zip(pieces, how.over, strict=True):
        matrix, names, contracted = _rows_first(piece, over, how.in_axes)
        parts = products_in_parts(x_TD, matrix, names, contracted, how.out_dtype, in_parts=how.first)
        y_TF = jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        outer = piece.shape[how.in_axes :] if any(over[: how.in_axes]) else (*piece.shape[how.in_axes : -1], -1)
        ys.append(_added(y_TF.reshape(*batch, *outer), how))
    return tuple(ys), (x, pieces)


def _backward(how, saved, grads):
    """The whole weights are not kept for this: a stack of layers would keep all of them."""
    x, pieces = saved
    x, grads = jax.lax.optimization_barrier((x, tuple(g.astype(x.dtype) for g in grads)))
    x_TD, batch = _tokens(gather(x, ((), how.positions)), how.in_axes)
    grad_parts, piece_grads = [], []
    for piece, over, grad in zip(pieces, how.over, grads, strict=True):
        matrix, names, contracted = _rows_first(piece, over, how.in_axes)
        grad_TF = _whole_again(grad, how).reshape(x_TD.shape[0], -1)
        in_parts = is_waited_for(matrix, names)
        parts = products_in_parts(grad_TF, matrix, names, 1 - contracted, in_parts=in_parts)
        grad_parts = [sum(same) for same in zip(grad_parts, parts, strict=True)] if grad_parts else parts
        rows, columns = (grad_TF, x_TD) if contracted else (x_TD, grad_TF)
        weight_grad = scattered_product(rows, columns, names)
        piece_grads.append((weight_grad.T if contracted else weight_grad).reshape(piece.shape))
    grad_TD = jnp.concatenate(jax.lax.optimization_barrier(grad_parts), axis=1)
    grad_x = grad_TD.reshape(*batch, *x.shape[2:])
    return scatter(grad_x, ((), how.positions)), tuple(piece_grads)


_products.defvjp(_forward, _backward)


def _tokens(x: jax.Array, in_axes: int) -> tuple[jax.Array, tuple[int, ...]]:
    batch = x.shape[: x.ndim - in_axes]
    return x.reshape(math.prod(batch), -1), batch


def _added(y: jax.Array, how: How) -> jax.Array:
    y = scatter(y, ((), how.cut))
    return jax.lax.psum(y, how.summed) if how.summed else y


def _whole_again(grad: jax.Array, how: How) -> jax.Array:
    """The transpose of ``_added``; ``shard_map`` gives each device its share of the gradient of what all hold."""
    grad = gather(grad, ((), how.cut))
    return jax.lax.psum(grad, how.summed) if how.summed else grad
