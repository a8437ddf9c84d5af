"""Weights as int8 with a float32 scale per output, for decoding: there reading the weights is the work."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int8

TILE = 2**19  # weights converted at a time on a CPU: 2 MB of float32, which stays in the cache
FEWEST_ROWS = 32
ROWS = 16  # that a single row of activations meets in registers before a sum is written


class Int8Weight(nnx.Module):
    """A weight [in..., out...] rounded to int8, symmetric, one scale per output: half of bfloat16, for inference only.

    Rounding moves an element by at most 1/254 of the largest one of its output. It stands where the ``nnx.Param``
    stood and is read like it (``self.wq[...]``); ``nn.project.project`` knows what to do with it.
    """

    def __init__(self, weight: nnx.Param, in_axes: int):
        """``in_axes``: how many leading axes of ``weight`` are contracted."""
        value, axes = weight[...].astype(jnp.float32), weight.get_metadata()["axes"]
        largest = jnp.max(jnp.abs(value), axis=tuple(range(in_axes)))
        scale = jnp.maximum(largest, 1e-30) / 127.0
        self.values = nnx.Param(jnp.round(value / scale).astype(jnp.int8), axes=axes)
        self.scale = nnx.Param(scale, axes=axes[in_axes:])

    def __getitem__(self, index: object) -> Int8Weight:
        return self

    def dequantised(self) -> Float[Array, "..."]:
        """The float32 weight that this one stands for."""
        return self.values[...].astype(jnp.float32) * self.scale[...]

    def matmul(self, x_TD: Float[Array, "T D"]) -> Float[Array, "T F"]:
        """``x_TD`` times the weight as a matrix, float32."""
        values, scale = self.values[...], self.scale[...]
        x_T = x_TD.reshape(x_TD.shape[0], *values.shape[: values.ndim - scale.ndim])
        y_T = jax.lax.platform_dependent(x_T, values, cpu=_on_cpu, default=_whole)
        return (y_T * scale).reshape(x_TD.shape[0], -1)


def _whole(x_T: Float[Array, "T *D"], values: Int8[Array, "..."]) -> Float[Array, "T *F"]:
    """The axes of the weight stay apart: to merge heads with their width is a copy of the weight on a TPU."""
    axes = tuple(range(1, x_T.ndim)), tuple(range(x_T.ndim - 1))
    return jax.lax.dot_general(x_T, values.astype(x_T.dtype), (axes, ((), ())), preferred_element_type=jnp.float32)


def _on_cpu(x_T: Float[Array, "T *D"], values: Int8[Array, "..."]) -> Float[Array, "T *F"]:
    """The same in float32, by one of the two ways below.

    The CPU compiler knows no product with int8: it would write the whole converted weight to memory first, which takes
    many times as long as reading it.
    """
    x_TD = x_T.reshape(x_T.shape[0], -1).astype(jnp.float32)
    product = _one_row if len(x_TD) == 1 else _by_rows
    return product(x_TD, values.reshape(x_TD.shape[1], -1)).reshape(-1, *values.shape[x_T.ndim - 1 :])


def _by_rows(x_TD: Float[Array, "T D"], values_DF: Int8[Array, "D F"]) -> Float[Array, "T F"]:
    """A few rows of the weight at a time: converted rows that are used at once stay in the cache."""
    D, F = values_DF.shape
    most = max(FEWEST_ROWS, TILE // F)
    rows = max(r for r in range(1, min(most, D) + 1) if D % r == 0)

    def body(i: Array, y_TF: Array) -> Array:
        tile_RF = jax.lax.dynamic_slice(values_DF, (i * rows, 0), (rows, F)).astype(jnp.float32)
        tile_RF = jax.lax.optimization_barrier(tile_RF)  # or the conversion moves into the product, element by element
        return y_TF + jax.lax.dynamic_slice(x_TD, (0, i * rows), (x_TD.shape[0], rows)) @ tile_RF

    return jax.lax.fori_loop(0, D // rows, body, jnp.zeros((x_TD.shape[0], F), jnp.float32))


def _one_row(x_1D: Float[Array, "1 D"], values_DF: Int8[Array, "D F"]) -> Float[Array, "1 F"]:
    """For one token, which reads the weight and does little else: converted in registers.

    One fused loop converts, multiplies and adds ``ROWS`` rows of the weight. A product with ones adds up these sums, a
    sixteenth of the elements: a reduction would be fused with the loop into something many times slower.
    """
    # Tied to ``x``, or the conversion moves out of the loop over tokens: a float32 copy of the whole weight.
    x_1D, values_DF = jax.lax.optimization_barrier((x_1D, values_DF))
    D = x_1D.shape[1]
    rows = math.gcd(D, ROWS)
    x_NR, values_NRF = x_1D.reshape(-1, rows), values_DF.reshape(D // rows, rows, -1)
    sums_NF = sum(x_NR[:, r, None] * values_NRF[:, r].astype(jnp.float32) for r in range(rows))
    return jnp.ones((1, D // rows)) @ jax.lax.optimization_barrier(sums_NF)
