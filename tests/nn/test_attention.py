"""Attention, bias, cache and projections against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.kernels.places import FORBIDDEN
from aqaa_jax.nn.alibi import alibi_slopes, causal_distance, segment_positions
from aqaa_jax.nn.attention import grouped_attention
from aqaa_jax.nn.kv_cache import empty_cache, new_slots, write_layer
from aqaa_jax.nn.mlp import SwiGLU
from aqaa_jax.nn.project import project


def test_slopes():
    np.testing.assert_array_equal(alibi_slopes(1), np.float32([2**-8]))
    np.testing.assert_allclose(alibi_slopes(4), 2.0 ** np.array([-2, -4, -6, -8]))
    np.testing.assert_allclose(alibi_slopes(6), 2.0 ** np.array([-2, -4, -6, -8, -1, -3]))
    published = [0.9170040432, 0.8408964153, 2**-8, 0.9576032807, 0.0652671114]
    np.testing.assert_allclose(alibi_slopes(96)[[0, 1, 63, 64, 95]], published, rtol=1e-6)
    with pytest.raises(ValueError, match="heads is 0"):
        alibi_slopes(0)


def test_segment_positions():
    segments = jnp.asarray([[1, 1, 2, 2, 2, 0, 0], [0, 0, 1, 1, 1, 1, 3]])
    np.testing.assert_array_equal(segment_positions(segments), [[0, 1, 0, 1, 2, 0, 1], [0, 1, 0, 1, 2, 3, 0]])


def test_causal_distance():
    segments = jnp.asarray([[1, 1, 2, 2, 0]])
    places = jnp.arange(5)[None]
    out = np.asarray(causal_distance(places, places, segments, segments))[0]
    visible = out < FORBIDDEN
    np.testing.assert_array_equal(visible, np.tril(np.asarray(segments) == np.asarray(segments).T) & (segments[0] > 0))
    assert out[1, 0] == 1 and out[3, 3] == 0
    far = causal_distance(jnp.asarray([[9]]), jnp.asarray([[0, 5, 9, 10]]))
    np.testing.assert_allclose(far[0, 0], [3, 2, 0, FORBIDDEN])


def test_grouped_attention_is_the_written_formula():
    rng = np.random.default_rng(0)
    B, L, N, K, H = 2, 5, 6, 2, 4
    q, k, v = (rng.normal(size=(B, L, heads, H)).astype(np.float32) for heads in (N, K, K))
    place = np.arange(L)
    out = grouped_attention(
        *(jnp.asarray(x) for x in (q, k, v)), causal_distance(place[None], place[None]), alibi_slopes(N)
    )
    for n in range(N):
        for i in range(L):
            shared = n // (N // K)
            scores = np.einsum("bh,bsh->bs", q[:, i, n], k[:, : i + 1, shared]) / np.sqrt(H)
            scores -= alibi_slopes(N)[n] * np.sqrt(i - place[: i + 1])
            weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
            expected = np.einsum("bs,bsh->bh", weights, v[:, : i + 1, shared])
            np.testing.assert_allclose(out[:, i, n], expected, atol=2e-6)


def test_a_query_that_sees_nothing_gives_finite_values_and_gradients():
    x = jnp.ones((1, 2, 2, 4))
    nothing = jnp.full((1, 2, 2), FORBIDDEN)
    value, grad = jax.value_and_grad(lambda x: jnp.sum(grouped_attention(x, x, x, nothing, alibi_slopes(2))))(x)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_cache_writes_where_it_should():
    cache = empty_cache(2, 2, 4, 1, 1)
    real = jnp.asarray([[True, True, True], [True, False, False]])
    slots = new_slots(jnp.asarray([2, 3]), real, 3, 4)
    np.testing.assert_array_equal(slots, [[2, 3, 4], [3, 4, 4]])
    new = jnp.arange(1.0, 7.0).reshape(2, 3, 1, 1)
    k, v = write_layer(cache.k, cache.v, jnp.asarray(1), slots, new, -new)
    np.testing.assert_array_equal(k[:, :, 0, :, 0], [[[0] * 4] * 2, [[0, 0, 1, 2], [0, 0, 0, 4]]])
    np.testing.assert_array_equal(v, -k)


def test_project_is_einsum():
    x, w = jax.random.normal(jax.random.key(0), (2, 3, 4, 5)), jax.random.normal(jax.random.key(1), (4, 5, 6, 7))
    np.testing.assert_allclose(project(x, w, in_axes=2), jnp.einsum("abcd,cdef->abef", x, w), atol=1e-5)
    low = project(x.astype(jnp.bfloat16), w, in_axes=2, out_dtype=jnp.float32)
    assert low.dtype == jnp.float32


def test_swiglu():
    mlp = SwiGLU(3, 5, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 2, 3))
    gate, up, down = (np.asarray(w[...]) for w in (mlp.gate, mlp.up, mlp.down))
    gated = np.asarray(x) @ gate
    expected = (gated / (1 + np.exp(-gated)) * (np.asarray(x) @ up)) @ down
    np.testing.assert_allclose(mlp(x), expected, atol=1e-5)
