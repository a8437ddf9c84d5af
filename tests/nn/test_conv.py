"""Convolutions against plain sums, the fast ones against the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.nn import toom_cook
from aqaa_jax.nn.conv import Conv1d, ConvTranspose1d, GroupNorm, frame_mask, masked, mish


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def direct(x, w, stride, dilation, padding):
    """The definition, in float64."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (padding, padding), (0, 0)))
    frames = (x.shape[1] - dilation * (len(w) - 1) - 1) // stride + 1
    taps = (x[:, k * dilation : k * dilation + (frames - 1) * stride + 1 : stride] @ w[k] for k in range(len(w)))
    return sum(taps)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (7, 1, 3), (1, 1, 1), (16, 8, 1)])
def test_conv_is_its_definition(kernel, stride, dilation):
    conv = Conv1d(4, 6, kernel, rngs=nnx.Rngs(0), stride=stride, dilation=dilation)
    conv.bias.set_value(array(6, seed=1))
    x = array(2, 33, 4)
    expected = direct(x, np.asarray(conv.kernel[...], np.float64), stride, dilation, conv.padding) + conv.bias[...]
    np.testing.assert_allclose(conv(x), expected, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(16, 8, 4), (4, 2, 1), (5, 2, 0), (3, 3, 0), (2, 3, 0)])
def test_transposed_conv_is_its_definition(kernel, stride, padding):
    conv = ConvTranspose1d(4, 6, kernel, rngs=nnx.Rngs(0), stride=stride, padding=padding)
    conv.bias.set_value(array(6, seed=1))
    x, w = array(2, 7, 4), np.asarray(conv.kernel[...], np.float64)
    out = np.zeros((2, 6 * stride + kernel, 6))
    for t in range(7):
        out[:, t * stride : t * stride + kernel] += np.einsum("bi,kio->bko", x[:, t], w)
    expected = out[:, padding : out.shape[1] - padding] + conv.bias[...]
    np.testing.assert_allclose(conv(x), expected, atol=1e-5)


@pytest.mark.parametrize("kernel", [3, 5, 7, 11])
@pytest.mark.parametrize(("dilation", "frames"), [(1, 41), (3, 50), (5, 9)])
def test_fewer_products_give_the_same(kernel, dilation, frames):
    x, w = array(2, frames, 8), array(kernel, 8, 8, seed=1) / kernel
    padding = dilation * (kernel - 1) // 2
    expected = direct(x, w.astype(np.float64), 1, dilation, padding)
    got = toom_cook.convolve(jnp.asarray(x), jnp.asarray(w), dilation, padding)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_wide_layer_uses_fewer_products_and_its_gradient_is_right():
    wide = toom_cook.MIN_CHANNELS
    layers = [Conv1d(wide, wide, 7, rngs=nnx.Rngs(0), dilation=3, fewer_products=f) for f in (True, False)]
    assert [layer.fewer_products for layer in layers] == [True, False]
    assert not Conv1d(wide, wide, 7, rngs=nnx.Rngs(0), stride=2, fewer_products=True).fewer_products
    assert not Conv1d(8, 8, 7, rngs=nnx.Rngs(0), fewer_products=True).fewer_products
    x = array(1, 30, wide)
    results = [jax.jit(jax.value_and_grad(lambda c, x: jnp.sum(jnp.sin(c(x))), (0, 1)))(layer, x) for layer in layers]
    for fast, plain in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        np.testing.assert_allclose(fast, plain, atol=2e-3 * float(jnp.abs(plain).max()))


def test_group_norm_ignores_padding():
    norm = GroupNorm(2, 8, rngs=nnx.Rngs(0))
    norm.scale.set_value(array(8, seed=1))
    norm.bias.set_value(array(8, seed=2))
    x, lengths = array(2, 9, 8), np.array([9, 5])
    got = norm(x, frame_mask(lengths, 9))
    for row, n in enumerate(lengths):
        groups = x[row, :n].reshape(n, 2, 4).astype(np.float64)
        mean, var = groups.mean((0, 2), keepdims=True), groups.var((0, 2), keepdims=True)
        expected = ((groups - mean) / np.sqrt(var + norm.eps)).reshape(n, 8) * norm.scale[...] + norm.bias[...]
        np.testing.assert_allclose(got[row, :n], expected, atol=1e-5)
        np.testing.assert_allclose(norm(x[row : row + 1, :n])[0], got[row, :n], atol=1e-5)


def test_group_norm_names_a_wrong_split():
    with pytest.raises(ValueError, match="6 channels"):
        GroupNorm(4, 6, rngs=nnx.Rngs(0))


def test_mish():
    def exact(x):
        return x * np.tanh(np.logaddexp(0, x))

    x = np.linspace(-60, 60, 241, dtype=np.float32)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mish(x), exact(wide), atol=1e-6, rtol=1e-6)
    slopes = jax.vmap(jax.grad(mish))(x)
    np.testing.assert_allclose(slopes, (exact(wide + 1e-5) - exact(wide - 1e-5)) / 2e-5, atol=1e-5)


def test_mask_of_nothing_is_the_identity():
    x = array(1, 3, 2)
    assert masked(x, None) is x
    np.testing.assert_array_equal(masked(x, frame_mask(jnp.array([2]), 3))[0, 2], 0)
