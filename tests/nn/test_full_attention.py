"""Attention by heads, as a CPU runs it for long rows, against all heads at once; keys that are left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqaa_jax.nn import full_attention as module
from aqaa_jax.nn.full_attention import full_attention

B, T, S, N, H = 2, 9, 11, 6, 8


@pytest.fixture
def arrays():
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(jax.random.normal(k, (B, n, N, H)) for k, n in zip(keys, (T, S, S), strict=True))


@pytest.mark.parametrize("heads", [1, 3, 12])  # one at a time, some, all of both rows
def test_by_heads_is_all_at_once(arrays, heads, monkeypatch):
    seen = jnp.arange(S) < jnp.array([[S], [4]])
    expected = full_attention(*arrays, seen_BS=seen)
    monkeypatch.setattr(module, "FEW", 0)
    monkeypatch.setattr(module, "MOST", heads * T * S)
    out = jax.jit(full_attention)(*arrays, seen_BS=seen)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(full_attention(*arrays), full_attention(*arrays, seen_BS=jnp.ones((B, S))), rtol=1e-6)


@pytest.mark.parametrize("few", [0, module.FEW])
def test_keys_that_are_not_seen_change_nothing(arrays, few, monkeypatch):
    monkeypatch.setattr(module, "FEW", few)
    q, k, v = arrays
    seen = jnp.arange(S) < jnp.array([[7], [4]])
    wild = jnp.where(seen[..., None, None], 0.0, 100.0)
    np.testing.assert_allclose(full_attention(q, k + wild, v + wild, seen), full_attention(q, k, v, seen), rtol=1e-6)
    alone = full_attention(q[1:], k[1:, :4], v[1:, :4])
    np.testing.assert_allclose(full_attention(q, k, v, seen)[1:], alone, rtol=1e-5, atol=1e-6)


def test_gradients_agree(arrays, monkeypatch):
    def loss(q, k, v):
        return jnp.sum(full_attention(q, k, v) ** 2)

    expected = jax.grad(loss, argnums=(0, 1, 2))(*arrays)
    monkeypatch.setattr(module, "FEW", 0)
    for ours, theirs in zip(jax.grad(loss, argnums=(0, 1, 2))(*arrays), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
