"""Rows of activations sent to the devices that hold their experts, and back, none left behind."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Slices(NamedTuple):
    """What one device sends and receives: one slice for every expert there is, in the order of the devices."""

    from_row: jax.Array  # where each slice begins here
    size: jax.Array
    to_row: jax.Array  # where it begins on the device that gets it
    received: jax.Array  # sizes of the slices that arrive here


class Exchange(NamedTuple):
    """Rows sorted by expert to their experts (``there``: by expert, then by sender) and home again (``back``)."""

    there: Slices
    back: Slices
    sizes_E: jax.Array  # rows that the experts of this device receive


def plan_exchange(sizes_E: Int[Array, "E"], axes: tuple[str, ...]) -> Exchange:
    """The exchange among the devices along mesh ``axes`` of rows of which ``sizes_E`` go to each of all E experts.

    For use inside ``partition.per_shard``. Every device holds E / devices experts, in the order of the devices.
    """
    devices, here = jax.lax.axis_size(axes), jax.lax.axis_index(axes)
    sizes_SE = jax.lax.all_gather(sizes_E, axes)  # of every sender
    many = sizes_SE.shape[1] // devices
    home_SE = jnp.cumsum(sizes_SE, axis=1) - sizes_SE  # first row of a slice at its sender
    per_device = sizes_SE.reshape(devices, devices, many)  # sender, device of the expert, expert on it
    order = per_device.transpose(1, 2, 0).reshape(devices, many * devices)
    away = (jnp.cumsum(order, axis=1) - order).reshape(devices, many, devices)
    away_SE = away.transpose(2, 0, 1).reshape(sizes_SE.shape)  # first row of a slice where it is worked on

    def mine(x_SE: jax.Array) -> jax.Array:  # of the experts here, by sender
        return jax.lax.dynamic_slice_in_dim(x_SE, here * many, many, axis=1).reshape(-1)

    there = Slices(home_SE[here], sizes_E, away_SE[here], mine(sizes_SE))
    back = Slices(mine(away_SE), mine(sizes_SE), mine(home_SE), sizes_E)
    return Exchange(there, back, jnp.sum(mine(sizes_SE).reshape(devices, many), axis=0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def move(
    rows_RD: Float[Array, "R D"], out: Slices, home: Slices, count: int, axes: tuple[str, ...]
) -> Float[Array, "count D"]:
    """``rows_RD`` sent along ``axes`` as ``out`` says, into ``count`` rows; ``home`` is the way back, for the gradient.

    Rows that nothing was sent to are zero. On TPU one ``ragged_all_to_all``, whose traffic is what is sent; elsewhere
    all rows are gathered and each device picks its own (XLA for CPU knows no ragged exchange), with the same result.
    """
    return _move(rows_RD, out, count, axes)


def _forward(rows_RD: jax.Array, out: Slices, home: Slices, count: int, axes: tuple[str, ...]):
    return _move(rows_RD, out, count, axes), (home, rows_RD[:, :0])


def _backward(count: int, axes: tuple[str, ...], kept: tuple[Slices, jax.Array], g: jax.Array):
    home, like = kept
    return _move(g, home, len(like), axes), None, None


move.defvjp(_forward, _backward)


def _move(rows_RD: jax.Array, out: Slices, count: int, axes: tuple[str, ...]) -> jax.Array:
    def ragged(rows_RD: jax.Array, out: Slices) -> jax.Array:
        empty = jnp.zeros((count, rows_RD.shape[1]), rows_RD.dtype)
        return jax.lax.ragged_all_to_all(
            rows_RD, empty, out.from_row, out.size, out.to_row, out.received, axis_name=axes
        )

    return jax.lax.platform_dependent(
        rows_RD, out, tpu=ragged, default=lambda rows_RD, out: _gathered(rows_RD, out, count, axes)
    )


def _gathered(rows_RD: jax.Array, out: Slices, count: int, axes: tuple[str, ...]) -> jax.Array:
    devices, here = jax.lax.axis_size(axes), jax.lax.axis_index(axes)

    def arriving(x: jax.Array) -> jax.Array:  # sender, slice for this device
        return jax.lax.all_gather(x, axes).reshape(devices, devices, -1)[:, here]

    to_row, size, from_row = arriving(out.to_row), arriving(out.size), arriving(out.from_row)
    from_row += jnp.arange(devices)[:, None] * rows_RD.shape[0]
    place = jnp.arange(count)[:, None] - to_row.reshape(-1)  # within each slice
    inside = (place >= 0) & (place < size.reshape(-1))
    source = jnp.sum(jnp.where(inside, place + from_row.reshape(-1), 0), axis=1)
    all_rows = jax.lax.all_gather(rows_RD, axes, tiled=True)
    return jnp.where(inside.any(axis=1)[:, None], all_rows[source], 0)
