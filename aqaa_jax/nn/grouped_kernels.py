"""Pallas TPU kernels of ``nn/grouped_matmul.py``: tiles of rows, visited group by group.

A tile that two groups share is visited once for each, and then computed in pieces of ``FINE_ROWS`` rows of which those
without rows of the group are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int

ROWS, FINE_ROWS = 512, 128  # rows of a tile; of the pieces that a tile shared by two groups is computed in
LANES = 128  # what the widths have to be multiples of
INNER, OUTER = 2048, 1024  # most of the contracted and of the other width that a tile takes
VMEM = 64 * 2**20  # bytes a kernel may take; the tiles need 30 MiB of them at most


class Visits(NamedTuple):
    """Tiles of rows in the order in which a kernel works on them: group by group, a tile of two groups twice."""

    start_E: jax.Array  # first row of each group
    end_E: jax.Array
    group_V: jax.Array
    tile_V: jax.Array
    count: jax.Array  # how many of the V are meant


def visits(sizes_E: Int[Array, "E"], rows: int, tile: int, *, empty: bool = False) -> Visits:
    """The visits to ``rows`` rows in tiles of ``tile``; with ``empty``, one for every group without rows as well."""
    sizes_E = sizes_E.astype(jnp.int32)
    end_E = jnp.cumsum(sizes_E)
    start_E = end_E - sizes_E
    many_E = jnp.where(sizes_E > 0, (end_E + tile - 1) // tile - start_E // tile, int(empty))
    until_E = jnp.cumsum(many_E)
    visit_V = jnp.arange(rows // tile + len(sizes_E) - 1, dtype=jnp.int32)
    group_V = jnp.sum(visit_V[:, None] >= until_E, axis=1, dtype=jnp.int32)
    group_V = jnp.minimum(group_V, len(sizes_E) - 1)
    tile_V = start_E[group_V] // tile + visit_V - (until_E - many_E)[group_V]
    return Visits(start_E, end_E, group_V, jnp.clip(tile_V, 0, rows // tile - 1), until_E[-1])


@functools.partial(jax.jit, static_argnames=("transposed", "expected", "interpret"))
def product_kernel(
    x_RD: jax.Array,
    weight_EDF: jax.Array,
    sizes_E: jax.Array,
    *,
    transposed: bool = False,
    expected: int = 0,
    interpret: bool = False,
) -> jax.Array:
    """The grouped product; with ``transposed`` the weight is [E, F, D]. Widths are multiples of ``LANES``.

    Grid: tiles of the output width, visits, tiles of the contracted width. The output tile of rows that two groups
    share stays in VMEM between its visits, and each writes its own rows.
    """
    rows, inner = x_RD.shape
    outer = weight_EDF.shape[1 if transposed else 2]
    x_RD, tile = _whole_tiles(x_RD)
    inner_tile, outer_tile = _width(inner, INNER), _width(outer, OUTER)
    plan = visits(sizes_E, x_RD.shape[0], tile)
    steps = inner // inner_tile
    seen, groups = expected or rows, len(sizes_E)
    weight_reads = groups if steps == 1 else seen // tile + groups
    moved = seen * inner * (outer // outer_tile) + weight_reads * inner * outer + seen * outer
    weight_tile = (None, outer_tile, inner_tile) if transposed else (None, inner_tile, outer_tile)

    def weight_at(n, v, k, start, end, group, tiles):
        return (group[v], n, k) if transposed else (group[v], k, n)

    y_RF = pl.pallas_call(
        functools.partial(_product, tile=tile, steps=steps, contract=(((1,), (1 if transposed else 0,)), ((), ()))),
        out_shape=jax.ShapeDtypeStruct((x_RD.shape[0], outer), x_RD.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(outer // outer_tile, plan.count, steps),
            in_specs=[
                pl.BlockSpec((tile, inner_tile), lambda n, v, k, start, end, group, tiles: (tiles[v], k)),
                pl.BlockSpec(weight_tile, weight_at),
            ],
            out_specs=pl.BlockSpec((tile, outer_tile), lambda n, v, k, start, end, group, tiles: (tiles[v], n)),
            scratch_shapes=[pltpu.VMEM((tile, outer_tile), jnp.float32)],
        ),
        compiler_params=_params("parallel", "arbitrary", "arbitrary"),
        cost_estimate=_cost(seen, groups, inner, outer, moved, x_RD.dtype.itemsize),
        name="grouped_matmul_transposed" if transposed else "grouped_matmul",
        interpret=interpret,
    )(*plan[:4], x_RD, weight_EDF)
    return y_RF[:rows]


def _product(
    start: Any, end: Any, group: Any, tiles: Any, x: Any, weight: Any, out: Any, total: Any, *, tile: int, steps: int,
    contract: Any,
) -> None:  # fmt: skip
    visit, step = pl.program_id(1), pl.program_id(2)
    first_row, low, high = tiles[visit] * tile, start[group[visit]], end[group[visit]]

    def add(at: int, size: int) -> None:
        here = pl.ds(at, size)
        part = jax.lax.dot_general(x[here], weight[...], contract, preferred_element_type=jnp.float32)
        if steps == 1:
            store(at, size, part)
            return
        total[here] = jnp.where(step == 0, part, total[here] + part)
        pl.when(step == steps - 1)(lambda: store(at, size, total[here]))

    def store(at: int, size: int, value: jax.Array) -> None:
        here = pl.ds(at, size)
        row = first_row + at + jax.lax.broadcasted_iota(jnp.int32, value.shape, 0)
        mine = (row >= low) & (row < high)
        out[here] = jnp.where(mine, value, out[here].astype(jnp.float32)).astype(out.dtype)

    _each_piece(first_row, low, high, tile, lambda at, size, whole: add(at, size))


@functools.partial(jax.jit, static_argnames=("expected", "interpret"))
def outer_kernel(
    x_RD: jax.Array, g_RF: jax.Array, sizes_E: jax.Array, *, expected: int = 0, interpret: bool = False
) -> jax.Array:
    """``x^T g`` over the rows of each group, [E, D, F]: the gradient of the weight.

    Grid: tiles of D, tiles of F, visits; the sum of a group stays in VMEM over its visits. A group without rows is
    visited once, to write zeros.
    """
    (x_RD, tile), (g_RF, _) = _whole_tiles(x_RD), _whole_tiles(g_RF)
    inner, outer = x_RD.shape[1], g_RF.shape[1]
    inner_tile, outer_tile = _width(inner, OUTER), _width(outer, OUTER)
    plan = visits(sizes_E, x_RD.shape[0], tile, empty=True)
    seen, groups = expected or x_RD.shape[0], len(sizes_E)
    moved = seen * (inner * (outer // outer_tile) + outer * (inner // inner_tile)) + groups * inner * outer

    def row_tile(width_index: int) -> Callable[..., tuple[Any, Any]]:
        return lambda d, f, v, start, end, group, tiles, count: (tiles[v], (d, f)[width_index])

    return pl.pallas_call(
        functools.partial(_outer, tile=tile),
        out_shape=jax.ShapeDtypeStruct((groups, inner, outer), x_RD.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(inner // inner_tile, outer // outer_tile, plan.count),
            in_specs=[pl.BlockSpec((tile, inner_tile), row_tile(0)), pl.BlockSpec((tile, outer_tile), row_tile(1))],
            out_specs=pl.BlockSpec(
                (None, inner_tile, outer_tile), lambda d, f, v, start, end, group, tiles, count: (group[v], d, f)
            ),
            scratch_shapes=[pltpu.VMEM((inner_tile, outer_tile), jnp.float32)],
        ),
        compiler_params=_params("parallel", "parallel", "arbitrary"),
        cost_estimate=_cost(seen, groups, inner, outer, moved, x_RD.dtype.itemsize),
        name="grouped_outer",
        interpret=interpret,
    )(*plan[:4], plan.count[None], x_RD, g_RF)


def _outer(
    start: Any, end: Any, group: Any, tiles: Any, count: Any, x: Any, g: Any, out: Any, total: Any, *, tile: int
) -> None:
    visit = pl.program_id(2)
    mine, first_row = group[visit], tiles[visit] * tile
    low, high = start[mine], end[mine]
    begins = (visit == 0) | (group[jnp.maximum(visit - 1, 0)] != mine)
    ends = (visit == count[0] - 1) | (group[jnp.minimum(visit + 1, count[0] - 1)] != mine)

    def between(rows: jax.Array, at: int) -> jax.Array:
        row = first_row + at + jax.lax.broadcasted_iota(jnp.int32, rows.shape, 0)
        return jnp.where((row >= low) & (row < high), rows, jnp.zeros_like(rows))

    def add(at: int, size: int, whole: bool) -> None:
        pieces = x[pl.ds(at, size)], g[pl.ds(at, size)]
        if not whole:  # both are masked: what lies beyond the groups may be anything, even NaN
            pieces = (between(pieces[0], at), between(pieces[1], at))
        total[...] += jax.lax.dot_general(*pieces, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    @pl.when(begins)
    def _():
        total[...] = jnp.zeros_like(total)

    _each_piece(first_row, low, high, tile, add)

    @pl.when(ends)
    def _():
        out[...] = total[...].astype(out.dtype)


def _each_piece(
    first_row: jax.Array, low: jax.Array, high: jax.Array, tile: int, work: Callable[[int, int, bool], None]
) -> None:
    """``work(at, size, whole)`` on a tile of one group, or on those pieces of it that have rows ``low`` to ``high``."""
    whole = (low <= first_row) & (first_row + tile <= high)
    pl.when(whole)(lambda: work(0, tile, True))
    fine = min(FINE_ROWS, tile)
    for at in range(0, tile, fine):
        touched = (first_row + at < high) & (first_row + at + fine > low) & (low < high)
        pl.when(~whole & touched)(functools.partial(work, at, fine, False))


def _whole_tiles(x_RD: jax.Array) -> tuple[jax.Array, int]:
    """``x_RD`` with rows added up to a multiple of the tile, and the tile: smaller for few rows (decoding)."""
    rows = x_RD.shape[0]
    tile = min(ROWS, max(16, 1 << (rows - 1).bit_length()))
    return jnp.pad(x_RD, ((0, -rows % tile), (0, 0))), tile


def _width(width: int, most: int) -> int:
    """The largest tile of at most ``most`` that divides ``width``."""
    return max(tile for tile in range(LANES, min(width, most) + 1, LANES) if width % tile == 0)


def _params(*semantics: Any) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=VMEM)


def _cost(rows: int, groups: int, inner: int, outer: int, moved: int, item: int) -> pl.CostEstimate:
    """For planners: the products of ``rows`` rows, and of the pieces of tiles that are computed for two groups."""
    flops = 2 * (rows + groups * FINE_ROWS) * inner * outer
    return pl.CostEstimate(flops=flops, bytes_accessed=moved * item, transcendentals=0)
