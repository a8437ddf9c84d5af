"""One token over a cache: the same attention as without, and the cache changed in one slot of one layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqaa_jax.kernels.decode import decode_attention
from aqaa_jax.nn.alibi import alibi_slopes
from tests.kernels.cases import truth


@pytest.mark.parametrize("S", [256, 300])
@pytest.mark.parametrize(("N", "K", "H"), [(12, 1, 128), (6, 2, 64)])
@pytest.mark.parametrize(("dtype", "limit"), [(jnp.float32, 1e-6), (jnp.bfloat16, 5e-3)], ids=["float32", "bfloat16"])
def test_one_token(N, K, H, S, dtype, limit, monkeypatch):
    monkeypatch.setattr("aqaa_jax.kernels.decode.KEYS", 128 * K)
    positions, kept = np.array([0, 17, 130, S - 1, 40, S]), np.array([1, 1, 1, 1, 0, 1])
    B, layers, layer = len(positions), 3, 1
    rng = jax.random.split(jax.random.key(0), 5)
    k, v = (jax.random.normal(key, (layers, B, K, S, H)).astype(dtype) for key in rng[:2])
    q, k_new, v_new = (
        jax.random.normal(key, (B, heads, H)).astype(dtype) for key, heads in zip(rng[2:], (N, K, K), strict=True)
    )
    out, k_after, v_after = jax.jit(decode_attention)(
        q, k_new, v_new, k, v, jnp.asarray(layer), jnp.asarray(positions), jnp.asarray(kept), alibi_slopes(N)
    )
    # The formula over the whole layer with the new token behind it; what is in its slot already is hidden.
    slots = np.arange(S)
    places = [positions[:, None], np.concatenate([np.tile(slots, (B, 1)), positions[:, None]], axis=1)]
    segments = [np.ones((B, 1), int), np.concatenate([slots != positions[:, None], np.ones((B, 1), int)], axis=1) * 1]
    with jax.enable_x64(True):
        keys, values = (
            jnp.concatenate([old[layer], new[:, :, None]], axis=2).swapaxes(1, 2).astype(jnp.float64)
            for old, new in ((k, k_new), (v, v_new))
        )
        rows = map(jnp.asarray, (*places, *segments))
        expected = np.asarray(truth(q[:, None].astype(jnp.float64), keys, values, alibi_slopes(N), *rows))[:, 0]
    error = np.linalg.norm(np.asarray(out, np.float64) - expected, axis=(1, 2)) / np.linalg.norm(expected, axis=(1, 2))
    assert error.max() <= limit, f"relative errors of the rows {error}"
    for before, new, after in ((k, k_new, k_after), (v, v_new, v_after)):
        expected = np.array(before)
        for row in np.flatnonzero(kept * (positions < S)):
            expected[layer, row, :, positions[row]] = new[row]
        np.testing.assert_array_equal(after, expected)
