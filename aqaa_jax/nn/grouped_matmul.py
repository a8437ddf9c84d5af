"""Products of rows with the matrix of their group: the work of experts, without padding and without a capacity."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aqaa_jax.nn.grouped_kernels import LANES, outer_kernel, product_kernel
from aqaa_jax.sharding.manual import Gather, gather, scatter

PART = 768 * 2**20  # bytes of a weight that are gathered at a time: what one of XLA's products beside them can hide
_CONTRACT_ROWS = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def grouped_matmul(
    x_RD: Float[Array, "R D"],
    weight_EDF: Float[Array, "E D F"],
    sizes_E: Int[Array, "E"],
    over: Gather = (),
    expected: int = 0,
) -> Float[Array, "R F"]:
    """``x_RD`` times the matrix of each row's group, in the dtype of ``x_RD`` and added up in float32.

    Rows are sorted by group: the first ``sizes_E[0]`` belong to group 0, and so on. What comes out for rows beyond the
    last group is arbitrary and has no gradient. On TPU a Pallas kernel that touches no tile without rows (the idea of
    MegaBlocks, Gale et al. 2022, arXiv 2211.15841); elsewhere, and for odd widths, ``jax.lax.ragged_dot``. The weight
    has to have the dtype of ``x_RD``; in pieces ``over`` mesh axes it is gathered, in the backward pass once more.
    ``expected``: how many rows belong to a group when all is in balance (0: all), for planners that read costs.
    """
    return _product_in_parts(x_RD, weight_EDF, sizes_E, over, expected)


def _forward(x_RD: jax.Array, weight_EDF: jax.Array, sizes_E: jax.Array, over: Gather, expected: int):
    return grouped_matmul(x_RD, weight_EDF, sizes_E, over, expected), (x_RD, weight_EDF, sizes_E)


def _backward(over: Gather, expected: int, kept: tuple[jax.Array, ...], g_RF: jax.Array):
    x_RD, piece, sizes_E = kept
    grad_RD = _product_in_parts(g_RF, piece, sizes_E, over, expected, transposed=True)
    return grad_RD, scatter(_outer(x_RD, g_RF, sizes_E, expected), over), None


grouped_matmul.defvjp(_forward, _backward)


def _product_in_parts(
    x_RD: jax.Array, piece: jax.Array, sizes_E: jax.Array, over: Gather, expected: int, *, transposed: bool = False
) -> jax.Array:
    """``_product`` with the weight in pieces; a large one is gathered and used in equal parts of its columns.

    XLA hides a gather behind one product of its own, and those of a layer (attention, shared expert) are not that long.
    """
    dim = 1 if transposed else 2
    piece = gather(piece, tuple(names if at == dim else () for at, names in enumerate(over)))
    rest = tuple(() if at == dim else names for at, names in enumerate(over))
    devices = math.prod(jax.lax.axis_size(names) for names in rest if names)
    parts = -(-piece.size * piece.dtype.itemsize * devices // PART) if devices > 1 else 1
    parts = parts if piece.shape[dim] % (parts * LANES) == 0 else 1
    pieces = jnp.split(piece, parts, axis=dim)
    products = [_product(x_RD, gather(p, rest), sizes_E, expected, transposed=transposed) for p in pieces]
    return jnp.concatenate(products, axis=1) if parts > 1 else products[0]


def _product(
    x_RD: jax.Array, weight_EDF: jax.Array, sizes_E: jax.Array, expected: int, *, transposed: bool = False
) -> jax.Array:
    def ragged(x_RD: jax.Array, weight_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
        weight_EDF = weight_EDF.swapaxes(1, 2) if transposed else weight_EDF
        return jax.lax.ragged_dot(x_RD, weight_EDF, sizes_E)

    if any(width % LANES for width in weight_EDF.shape[1:]):
        return ragged(x_RD, weight_EDF, sizes_E)
    kernel = functools.partial(product_kernel, transposed=transposed, expected=expected)
    return jax.lax.platform_dependent(x_RD, weight_EDF, sizes_E, tpu=kernel, default=ragged)


def _outer(x_RD: jax.Array, g_RF: jax.Array, sizes_E: jax.Array, expected: int) -> jax.Array:
    def ragged(x_RD: jax.Array, g_RF: jax.Array, sizes_E: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot_general(x_RD, g_RF, sizes_E, _CONTRACT_ROWS)

    if x_RD.shape[1] % LANES or g_RF.shape[1] % LANES:
        return ragged(x_RD, g_RF, sizes_E)
    kernel = functools.partial(outer_kernel, expected=expected)
    return jax.lax.platform_dependent(x_RD, g_RF, sizes_E, tpu=kernel, default=ragged)
