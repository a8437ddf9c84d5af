"""The chunked encoder: causal by chunk, blind to padding, equal streamed and differentiated."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.codec.paraformer import LinguisticEncoder, depthwise
from aqaa_jax.config import LinguisticConfig

CONFIG = LinguisticConfig(num_mels=4, embed=16, heads=2, mlp=32, layers=3)
T = 26  # six whole chunks and half of one


@pytest.fixture(scope="module")
def encoder():
    return LinguisticEncoder(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def feats_BTM():
    return jax.random.normal(jax.random.key(1), (3, T, CONFIG.features))


encode = jax.jit(lambda encoder, feats, lengths: encoder(feats, lengths))
whole = jnp.array([T, T, T])


def test_a_frame_never_sees_a_later_chunk(encoder, feats_BTM):
    changed = feats_BTM.at[:, 13].multiply(-1.0)
    gap_T = np.abs(encode(encoder, feats_BTM, whole) - encode(encoder, changed, whole)).max(axis=(0, 2))
    assert not gap_T[:12].any(), "earlier chunks must not move at all"
    assert (gap_T[12:16] > 1e-5).all(), "a chunk sees all of itself"


def test_look_back_is_finite(encoder, feats_BTM):
    """A frame reaches later chunks through overlap and look-back only, one look-back further with each layer."""
    changed = feats_BTM.at[:, 0].multiply(-1.0)
    gap_T = np.abs(encode(encoder, feats_BTM, whole) - encode(encoder, changed, whole)).max(axis=(0, 2))
    assert (gap_T[:24] > 0).all()
    one = LinguisticEncoder(dataclasses.replace(CONFIG, layers=2, look_back=1), rngs=nnx.Rngs(0))
    gap_T = np.abs(encode(one, feats_BTM, whole) - encode(one, changed, whole)).max(axis=(0, 2))
    assert (gap_T[:16] > 0).all() and not gap_T[16:].any()


def test_padding_changes_nothing(encoder, feats_BTM):
    lengths = jnp.array([26, 9, 1])
    out = encode(encoder, feats_BTM, lengths)
    noisy = jnp.where((jnp.arange(T)[None] < lengths[:, None])[..., None], feats_BTM, 1e6)
    assert np.array_equal(out, encode(encoder, noisy, lengths))
    for row, n in enumerate(lengths.tolist()):
        alone = encode(encoder, feats_BTM[row : row + 1, :n], jnp.array([n]))
        assert np.abs(alone[0] - out[row, :n]).max() < 1e-5
        assert not np.any(out[row, n:])


def test_stream_equals_parallel(encoder, feats_BTM):
    step = jax.jit(lambda encoder, state, feats, lengths: encoder.stream(state, feats, lengths))
    lengths, out, state = np.array([26, 26, 25]), [], encoder.init_state(3)
    padded = jnp.pad(feats_BTM, ((0, 0), (0, -T % 4), (0, 0)))
    for at in range(0, T, 4):
        y, state = step(encoder, state, padded[:, at : at + 4], jnp.asarray(np.clip(lengths - at, 0, 4)))
        out.append(y)
    streamed = jnp.concatenate(out, axis=1)[:, :T]
    assert np.abs(streamed - encode(encoder, feats_BTM, jnp.asarray(lengths))).max() < 1e-5


def test_depthwise_is_the_plain_sum():
    x = np.random.default_rng(0).standard_normal((1, 2, 9, 3)).astype(np.float32)
    for taps in (3, 11, 21):
        kernel = np.random.default_rng(1).standard_normal((taps, 3)).astype(np.float32)
        padded = np.pad(x, ((0, 0), (0, 0), (taps // 2, taps // 2), (0, 0)))
        expected = sum(padded[:, :, i : i + 9] * kernel[i] for i in range(taps))
        assert np.abs(depthwise(jnp.asarray(x), jnp.asarray(kernel)) - expected).max() < 1e-5


def test_gradients_are_finite_and_leave_cmvn_alone(encoder, feats_BTM):
    def loss(encoder):
        lengths = jnp.array([26, 3, 0])
        return jnp.sum(jnp.square(encoder(encoder.normalise(feats_BTM), lengths)) * jnp.arange(CONFIG.embed))

    gradient = jax.jit(jax.grad(loss))(encoder)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert not np.any(gradient.cmvn_shift[...]) and not np.any(gradient.cmvn_scale[...])
    assert np.any(gradient.first.fsmn[...]) and np.any(gradient.blocks.key.kernel[...])
