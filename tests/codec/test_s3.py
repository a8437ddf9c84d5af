"""The semantic encoder: blind to padding, differentiable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.codec.s3 import SemanticEncoder, StridedConv, count_vectors
from aqaa_jax.config import SemanticConfig
from aqaa_jax.sharding.axes import FEATURES

CONFIG = SemanticConfig(num_mels=8, embed=16, heads=2, mlp=32, layers=2, max_positions=12)


@pytest.fixture(scope="module")
def encoder():
    return SemanticEncoder(CONFIG, rngs=nnx.Rngs(0))


encode = jax.jit(lambda encoder, mel, lengths: encoder(mel, lengths))


@pytest.mark.parametrize("T", [1, 7, 8])
def test_strided_conv_is_a_convolution(T):
    conv = StridedConv(5, 6, FEATURES, rngs=nnx.Rngs(3))
    x = jax.random.normal(jax.random.key(0), (2, T, 5))
    expected = jax.lax.conv_general_dilated(
        x, conv.kernel[...], window_strides=(2,), padding=[(1, 1)], dimension_numbers=("NWC", "WIO", "NWC")
    )
    assert conv(x).shape == expected.shape
    assert np.abs(conv(x) - expected).max() < 1e-5


def test_padding_changes_nothing(encoder):
    mel, lengths = jax.random.normal(jax.random.key(1), (4, 30, 8)), jnp.array([30, 29, 5, 1])
    out = encode(encoder, mel, lengths)
    noisy = jnp.where((jnp.arange(30)[None] < lengths[:, None])[..., None], mel, 1e6)
    assert np.array_equal(out, encode(encoder, noisy, lengths))
    for row, n in enumerate(lengths.tolist()):
        alone = encode(encoder, mel[row : row + 1, :n], jnp.array([n]))
        assert alone.shape[1] == count_vectors(n)
        assert np.abs(alone[0] - out[row, : count_vectors(n)]).max() < 1e-5
        assert not np.any(out[row, count_vectors(n) :])


def test_every_vector_sees_every_frame(encoder):
    mel, lengths = jax.random.normal(jax.random.key(1), (1, 30, 8)), jnp.array([30])
    gap = np.abs(encode(encoder, mel, lengths) - encode(encoder, mel.at[:, 29].multiply(-1.0), lengths)).max(
        axis=(0, 2)
    )
    assert (gap > 0).all()


def test_too_many_positions_are_refused(encoder):
    with pytest.raises(ValueError, match="49 mel frames need 13 positions; 12 exist"):
        encoder(jnp.zeros((1, 49, 8)), jnp.array([49]))


def test_gradients_are_finite(encoder):
    mel, lengths = jax.random.normal(jax.random.key(1), (3, 30, 8)), jnp.array([30, 5, 0])
    gradient = jax.jit(jax.grad(lambda e: jnp.sum(jnp.square(e(mel, lengths)))))(encoder)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.any(gradient.conv1.kernel[...]) and np.any(gradient.blocks.value.kernel[...])
