"""The gradient of a weight that is in pieces, added up on its way round a ring of devices, beside its own product."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from aqaa_jax.kernels.accumulate import Piece, add_product, halves, runs_here, suits
from aqaa_jax.kernels.tiles import LANES
from aqaa_jax.sharding.axes import ACT_MLP
from aqaa_jax.sharding.manual import gather, scatter
from aqaa_jax.sharding.mesh import ring_of
from aqaa_jax.sharding.partition import context, mesh_axes

SMALLEST = 4 * 2**20  # bytes that travel at a time, below which the steps of a ring are more latency than work
WHOLE = 64 * 2**20  # bytes of a weight that may be waited for at once
DOWN = 512 * 2**20  # bytes of a weight, all shares of its columns, from which on its backward gather is in parts
FIRST, GROWTH = 60 * 2**20, 1.75  # bytes of the first part; of a part to the one before, whose product it hides behind


def scattered_product(
    x_TD: Float[Array, "T D"], g_TF: Float[Array, "T F"], names: tuple[str, ...]
) -> Float[Array, "R F"]:
    """This device's rows of ``x^T g``, added up over the mesh axes ``names``, in the order of their devices.

    In rings of devices along an axis of the torus (``mesh.ring_of``), n of them side by side, where ``loop.rings`` asks
    for it and the matrix is large enough: the product is cut into as many pieces of rows as a ring has devices, and
    each in two halves of columns, one for either direction. A half starts at the device behind its own and is passed
    on; every device adds its product. What has arrived is then added up over the n devices at the same place of their
    rings. Else one product, one reduce-scatter. Sums that travel are in the dtype of ``x`` either way.
    """
    size, ring = _size(names), _ring(names)
    if ring < 2 or not _pays(x_TD, g_TF, ring):
        return scatter(jax.lax.dot_general(x_TD, g_TF, (((0,), (0,)), ((), ()))), (names, ()))
    side = size // ring  # devices at the same place of their rings are neighbours in the order of ``names``
    mine, rows = jax.lax.axis_index(names) // side, x_TD.shape[1] // ring
    sums: list[Any] = [None, None]
    for left in reversed(range(ring)):  # steps that a piece still has before it
        for half, (way, columns) in enumerate(zip((1, -1), halves(g_TF.shape[1]), strict=True)):
            if sums[half] is not None:
                to = [(at, (at + way * side) % size) for at in range(size)]
                sums[half] = jax.lax.ppermute(sums[half], names, to)
            piece = Piece((mine + way * left) % ring, rows, *columns)
            sums[half] = add_product(x_TD, g_TF, piece, sums[half])
    groups = [list(range(first, first + side)) for first in range(0, size, side)]
    if side > 1:
        sums = [jax.lax.psum_scatter(s, names, scatter_dimension=0, axis_index_groups=groups, tiled=True) for s in sums]
    return jnp.concatenate(sums, axis=1)


def products_in_parts(
    x_TI: Float[Array, "T I"],
    piece: jax.Array,
    names: tuple[str, ...],
    contracted: int,
    out_dtype: DTypeLike | None = None,
    *,
    in_parts: bool,
) -> list[Float[Array, "T O"]]:
    """``x`` times the weight whose rows are split over ``names``, contracted over its rows (0) or columns (1).

    ``in_parts``, a large weight whose rows are contracted comes and is used in parts of its columns, to be put side by
    side: only the first part is waited for, where there is no product before to hide the gather behind.
    """
    size = _bytes(piece, names)
    cut = in_parts and contracted == 0 and names and size > WHOLE and piece.shape[1] % LANES == 0
    growth = 1 if _split() > 1 else GROWTH  # the product over a share of the columns hides no more than its like
    pieces = jnp.split(piece, _cuts(piece.shape[1] // LANES, size, growth), axis=1) if cut else [piece]
    axes = (((1,), (contracted,)), ((), ()))
    return [jax.lax.dot_general(x_TI, gather(p, (names, ())), axes, preferred_element_type=out_dtype) for p in pieces]


def is_waited_for(piece: jax.Array, names: tuple[str, ...]) -> bool:
    """Whether no product is left to hide the gather of a weight's pieces behind, in the backward pass.

    The compiler hides it behind products of its own, and where gradients go round rings no product of a gradient is one
    any more. What it still finds is too little for the down projection.
    """
    return _ring(names) > 1 and _bytes(piece, names) * _split() >= DOWN


def _split() -> int:
    """Over how many devices the columns of a large product are split: each holds that share of its weight."""
    return _size(mesh_axes(ACT_MLP))


def _bytes(piece: jax.Array, names: tuple[str, ...]) -> int:
    return _size(names) * piece.size * piece.dtype.itemsize


def _cuts(lanes: int, size: int, growth: float) -> list[int]:
    """The columns at which a weight of ``lanes`` tiles of them and ``size`` bytes is cut."""
    at, part = 0, max(1, min(FIRST, size // 2) * lanes // size)
    cuts = []
    while lanes - at >= 1.5 * part:
        at += part
        cuts.append(at * LANES)
        part = round(growth * part)
    return cuts


def _ring(names: tuple[str, ...]) -> int:
    here = context()
    return ring_of(here.mesh, names) if here is not None and here.rings and names and runs_here() else 1


def _size(names: tuple[str, ...]) -> int:
    here = context()
    return 1 if here is None else math.prod(here.mesh.shape[name] for name in names)


def _pays(x_TD: jax.Array, g_TF: jax.Array, ring: int) -> bool:
    tokens, width, columns = *x_TD.shape, g_TF.shape[1]
    half = width // ring * (columns // 2) * x_TD.dtype.itemsize
    return width % ring == 0 and suits(tokens, width // ring, columns, x_TD.dtype.itemsize) and half >= SMALLEST
