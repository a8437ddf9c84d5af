"""A Pallas TPU kernel that adds a matrix product to what is there: one piece of a weight's gradient to what came in.

XLA adds in a pass of its own as soon as a sum is sent on (``docs/scale.md``); here the sum never leaves the tile.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from aqaa_jax.kernels.tiles import LANES, TILES
from aqaa_jax.sharding.partition import device

ROWS, COLUMNS, INNER = 384, 512, 8192  # most of the result's tile, and most bytes of the contracted axis in a tile
VMEM = 24 * 2**20  # bytes; tiles take 18 MiB, the rest of the memory is for what collectives hold meanwhile


class Piece(NamedTuple):
    """Which ``rows`` x ``columns`` of a matrix: those from ``rows * row`` and from ``column`` on."""

    row: Int[Array, ""] | int
    rows: int
    column: int
    columns: int


def runs_here() -> bool:
    """Whether the device that is traced for runs the kernel: a TPU with memory for its tiles, or a CPU, slowly."""
    at = device()
    return at.platform == "cpu" or (at.device_kind in TILES and TILES[at.device_kind].vmem_mib * 2**20 >= VMEM)


def suits(tokens: int, rows: int, columns: int, itemsize: int) -> bool:
    """Whether the kernel takes pieces of ``rows`` rows of a product with ``columns``, contracted over ``tokens``."""
    tiles = _inner(tokens, itemsize) and _block(rows, ROWS)
    return bool(tiles) and columns % LANES == 0 and columns >= 2 * LANES


def halves(columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(first, how many) of the columns of two pieces, as equal as whole tiles allow. At least two tiles of 128."""
    width = _width(columns)
    first = pl.cdiv(pl.cdiv(columns, width), 2) * width
    return (0, first), (first, columns - first)


def add_product(
    x_TD: Float[Array, "T D"], g_TF: Float[Array, "T F"], piece: Piece, total: Float[Array, "R C"] | None = None
) -> Float[Array, "R C"]:
    """``total + (x^T g)[piece]`` in the dtype of ``x``; products and the sum in float32, rounded once.

    ``total`` (None: zeros) is overwritten where it lies. Sizes are those that ``suits`` allows, ``piece.column`` one of
    ``halves``. Grid: tiles of rows, which the cores share, tiles of columns, parts of T if all of it is too much.
    """
    tokens, width = len(x_TD), _width(g_TF.shape[1])
    rows, inner = _block(piece.rows, ROWS), _inner(tokens, x_TD.dtype.itemsize)
    steps, down, first = tokens // inner, piece.rows // rows, piece.column // width
    out = pl.BlockSpec((rows, width), lambda i, j, k, at: (i, j))
    given = [] if total is None else [total]
    moved = (len(given) + 1) * piece.rows * piece.columns + tokens * (piece.rows + down * piece.columns)
    return pl.pallas_call(
        functools.partial(_kernel, steps=steps, more=bool(given)),
        out_shape=jax.ShapeDtypeStruct((piece.rows, piece.columns), x_TD.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(down, pl.cdiv(piece.columns, width), steps),
            in_specs=[
                pl.BlockSpec((inner, rows), lambda i, j, k, at: (k, at[0] + i)),
                pl.BlockSpec((inner, width), lambda i, j, k, at: (k, first + j)),
                *([out] * len(given)),
            ],
            out_specs=out,
            scratch_shapes=[pltpu.VMEM((rows, width), jnp.float32)] * (steps > 1),
        ),
        input_output_aliases={3: 0} if given else {},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * piece.rows * piece.columns * tokens,
            bytes_accessed=moved * x_TD.dtype.itemsize,
            transcendentals=0,
        ),
        name="add_product",
        interpret=device().platform == "cpu",
    )(jnp.asarray(piece.row * down, jnp.int32)[None], x_TD, g_TF, *given)


def _kernel(at: Any, x: Any, g: Any, *rest: Any, steps: int, more: bool) -> None:
    total, (out, *scratch) = (rest[0], rest[1:]) if more else (None, rest)
    part = jax.lax.dot_general(x[...], g[...], (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    before = 0.0 if total is None else total[...].astype(jnp.float32)
    if steps == 1:
        out[...] = (before + part).astype(out.dtype)
        return
    (sums,), step = scratch, pl.program_id(2)
    sums[...] = part + jnp.where(step == 0, before, sums[...])

    @pl.when(step == steps - 1)
    def _():
        out[...] = sums[...].astype(out.dtype)


def _block(size: int, most: int) -> int:
    """The largest multiple of ``LANES``, at most ``most``, that divides ``size``; 0 if there is none."""
    return max((n for n in range(LANES, most + 1, LANES) if size % n == 0), default=0)


def _inner(tokens: int, itemsize: int) -> int:
    most = INNER // itemsize
    return tokens if tokens <= most else _block(tokens, most)


def _width(columns: int) -> int:
    return COLUMNS if columns >= 2 * COLUMNS else LANES
