"""Grouped products: the TPU kernels in interpret mode and the path of other devices against a loop over the groups."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from aqaa_jax.config import MeshConfig
from aqaa_jax.nn import grouped_kernels
from aqaa_jax.nn import grouped_matmul as products
from aqaa_jax.nn.grouped_kernels import outer_kernel, product_kernel, visits
from aqaa_jax.nn.grouped_matmul import grouped_matmul
from aqaa_jax.sharding.mesh import make_mesh

# Sizes of groups: all kinds of borders within tiles of 64 rows, groups without rows, rows of no group at the end.
SIZES = {
    "borders": [12, 0, 52, 64, 90, 0, 1, 40],
    "nothing": [0] * 8,
    "one": [0, 290, 0, 0, 0, 0, 0, 0],
    "few": [0, 3, 2, 0, 0, 0, 0, 0],
}
ROWS, D, F = 300, 256, 128


@pytest.fixture(scope="module")
def small_tiles():
    """Several tiles of the contracted width and of the rows."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("INNER", 128), ("OUTER", 128), ("ROWS", 64), ("FINE_ROWS", 16)):
            patch.setattr(grouped_kernels, name, value)
        yield
    for kernel in (product_kernel, outer_kernel):
        kernel.clear_cache()


def problem(sizes, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(sum(sizes)), 3)
    x, g = (jax.random.normal(k, (ROWS, n), dtype) for k, n in zip(keys, (D, F), strict=False))
    return x, jax.random.normal(keys[2], (len(sizes), D, F), dtype), g, jnp.asarray(sizes)


def by_loop(x, weight, g, sizes):
    """The product, its gradients for x and the weight: float64, a group at a time; 0 for rows of no group."""
    x, weight, g = (np.asarray(a, np.float64) for a in (x, weight, g))
    y, dx, dw, start = np.zeros_like(g), np.zeros_like(x), np.zeros_like(weight), 0
    for e, size in enumerate(np.asarray(sizes)):
        here = slice(start, start + size)
        y[here], dx[here], dw[e] = x[here] @ weight[e], g[here] @ weight[e].T, x[here].T @ g[here]
        start += size
    return y, dx, dw


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_kernels_in_interpret_mode(sizes, small_tiles):
    x, weight, g, sizes_E = problem(sizes)
    y, dx, dw = by_loop(x, weight, g, sizes_E)
    real = sum(sizes)
    g = g.at[real:].set(jnp.nan)  # rows of no group may hold anything
    out = product_kernel(x, weight, sizes_E, interpret=True)
    np.testing.assert_allclose(out[:real], y[:real], atol=2e-4, rtol=1e-4)
    back = product_kernel(g, weight, sizes_E, transposed=True, interpret=True)
    np.testing.assert_allclose(back[:real], dx[:real], atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(outer_kernel(x, g, sizes_E, interpret=True), dw, atol=3e-4, rtol=1e-4)


@jax.jit
def here(x, weight, sizes_E, g):
    out, vjp = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes_E), x, weight)
    return out, vjp(g)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_value_and_gradient_here(sizes):
    x, weight, g, sizes_E = problem(sizes)
    y, dx, dw = by_loop(x, weight, g, sizes_E)
    out, back = here(x, weight, sizes_E, g)
    real = sum(sizes)
    np.testing.assert_allclose(out[:real], y[:real], atol=2e-4, rtol=1e-4)
    for ours, expected in zip(back, (dx, dw), strict=True):
        np.testing.assert_allclose(ours, expected, atol=3e-4, rtol=1e-4)


def test_bfloat16_kernel_rounds_once(small_tiles):
    x, weight, _, sizes_E = problem(SIZES["borders"], jnp.bfloat16)
    expected = by_loop(x, weight, np.zeros((ROWS, F)), sizes_E)[0]
    out = product_kernel(x, weight, sizes_E, interpret=True)
    assert out.dtype == jnp.bfloat16
    real = sum(SIZES["borders"])
    np.testing.assert_allclose(out[:real].astype(jnp.float32), expected[:real], atol=1e-2, rtol=2**-8)


def test_visits_cover_every_row_once():
    sizes, tile = SIZES["borders"], 16
    rows = sum(sizes) + 13
    plan = visits(jnp.asarray(sizes), rows, tile)
    seen = np.full(rows, -1)
    for group, at in list(zip(np.asarray(plan.group_V), np.asarray(plan.tile_V), strict=True))[: int(plan.count)]:
        low, high = max(plan.start_E[group], at * tile), min(plan.end_E[group], (at + 1) * tile)
        assert low < high and (seen[low:high] == -1).all()
        seen[low:high] = group
    np.testing.assert_array_equal(seen[: sum(sizes)], np.repeat(np.arange(len(sizes)), sizes))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_weight_in_pieces_is_used_in_parts(parts, monkeypatch):
    """The values and gradients of the whole weight, gathered ``parts`` times each way."""
    monkeypatch.setattr(products, "PART", -(-8 * 2 * D * 2 * F * 4 // parts))
    keys, sizes_E = jax.random.split(jax.random.key(0), 3), jnp.asarray(SIZES["borders"])
    x, g = jax.random.normal(keys[0], (ROWS, 2 * D)), jax.random.normal(keys[1], (ROWS, 2 * F))
    weight = jax.random.normal(keys[2], (8, 2 * D, 2 * F))
    mesh, place = make_mesh(MeshConfig(fsdp=4, expert=2)), PartitionSpec("fsdp", "expert")

    def both(x, weight, g, over):
        y, back = jax.vjp(lambda x, weight: grouped_matmul(x, weight, sizes_E, over), x, weight)
        return y, *back(g)

    def here(x, weight, g):
        return both(x, weight, g, (("fsdp",), ("expert",), ()))

    whole = PartitionSpec()
    specs = {"in_specs": (whole, place, whole), "out_specs": (whole, whole, place), "check_vma": False}
    compiled = jax.jit(jax.shard_map(here, mesh=mesh, **specs)).lower(x, weight, g).compile()
    real, expected = sum(SIZES["borders"]), both(x, weight, g, ())
    for found, right in zip(compiled(x, weight, g), (*expected[:2], 8 * expected[2]), strict=True):
        rows = real if found.shape[0] == ROWS else None
        np.testing.assert_allclose(found[:rows], right[:rows], atol=1e-3, rtol=1e-4)
    over_fsdp = [line for line in compiled.as_text().splitlines() if re.search(r"= f32\[8,\S* all-gather", line)]
    assert len(over_fsdp) == (1 if parts == 1 else 2 * parts)  # both passes use the one gather of a whole weight


def test_a_whole_weight_is_used_whole_whatever_its_size(monkeypatch):
    """Parts are there to hide a gather, and copies where there is none."""
    x, weight, _, sizes_E = problem(SIZES["borders"])
    monkeypatch.setattr(products, "PART", weight.nbytes // 2)
    monkeypatch.setattr(products, "LANES", 1)
    assert "concatenate" not in str(jax.make_jaxpr(lambda *given: grouped_matmul(*given))(x, weight, sizes_E))
