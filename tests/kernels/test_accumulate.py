"""The kernel that adds a product to a piece of a gradient, against the formula; interpreted on a CPU."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqaa_jax.kernels import accumulate
from aqaa_jax.kernels.accumulate import Piece, add_product, halves, suits


@pytest.mark.parametrize("dtype, close", [("float32", 1e-6), ("bfloat16", 5e-3)])
@pytest.mark.parametrize(
    "tokens, rows, columns, inner",
    [(72, 128, 384, 8192), (256, 384, 1152, 8192), (512, 256, 640, 512)],
    ids=("odd tokens", "a last tile in part", "tokens in parts"),
)
def test_it_adds_the_product_to_what_was_there(tokens, rows, columns, inner, dtype, close, monkeypatch):
    monkeypatch.setattr(accumulate, "INNER", inner)
    keys = jax.random.split(jax.random.key(0), 3)
    x, g = (jax.random.normal(key, (tokens, n), dtype) for key, n in zip(keys, (3 * rows, columns), strict=False))
    assert suits(tokens, rows, columns, x.dtype.itemsize)
    product = np.asarray(x, "float64").T @ np.asarray(g, "float64")
    for row in range(3):
        for column, wide in halves(columns):
            before = jax.random.normal(keys[2], (rows, wide), dtype)
            expected = product[rows * row :][:rows, column : column + wide]
            run = jax.jit(lambda row, *total, c=column, w=wide: add_product(x, g, Piece(row, rows, c, w), *total))
            for total, whole in (([], expected), ([before], expected + np.asarray(before, "float64"))):
                out = run(jnp.asarray(row), *total)
                assert out.dtype == x.dtype
                assert np.linalg.norm(np.asarray(out, "float64") - whole) <= close * np.linalg.norm(whole)


@pytest.mark.parametrize("columns", [256, 384, 1024, 1152, 12288, 31232])
def test_two_halves_are_all_columns(columns):
    (first, some), (second, others) = halves(columns)
    assert (first, some, second + others) == (0, second, columns)
    assert 0 < others <= some <= columns // 2 + accumulate.COLUMNS


@pytest.mark.parametrize(
    "platform, kind, runs",
    [
        ("cpu", "cpu", True),
        ("tpu", "TPU v5", True),
        ("tpu", "TPU v6 lite", True),
        ("tpu", "TPU7x", True),
        ("tpu", "TPU v4", False),
        ("gpu", "NVIDIA H100", False),
    ],
)
def test_it_runs_where_there_is_memory_for_its_tiles(platform, kind, runs, monkeypatch):
    monkeypatch.setattr(accumulate, "device", lambda: SimpleNamespace(platform=platform, device_kind=kind))
    assert accumulate.runs_here() == runs


def test_what_it_does_not_take():
    assert suits(4096, 768, 31232, 2) and suits(12288, 768, 31232, 2) and suits(4095, 768, 31232, 2)
    assert not suits(4096, 100, 512, 2)  # rows that are no whole lanes
    assert not suits(4096, 128, 500, 2)
    assert not suits(4096, 128, 128, 2)  # no two halves
    assert not suits(4097, 128, 512, 2)  # too many tokens to be contracted at once, and not to be divided
