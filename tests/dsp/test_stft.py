"""The STFT pair against librosa, its own inverse, and its gradient."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from aqaa_jax.dsp.stft import frame, istft, stft

SIZES = [(16, 4, 16), (15, 4, 15), (16, 5, 12), (256, 64, 256), (512, 120, 400)]


@pytest.fixture
def wav_BW():
    return np.random.default_rng(0).standard_normal((2, 900)).astype(np.float32)


@pytest.mark.parametrize("n_fft, hop, win", SIZES)
def test_stft_equals_librosa(wav_BW, n_fft, hop, win):
    spec = stft(jnp.asarray(wav_BW), n_fft, hop, win)
    expected = librosa.stft(wav_BW, n_fft=n_fft, hop_length=hop, win_length=win, window="hann", pad_mode="reflect")
    assert np.abs(spec - expected.swapaxes(1, 2)).max() < 2e-5


@pytest.mark.parametrize("n_fft, hop, win", SIZES)
def test_istft_inverts_stft(wav_BW, n_fft, hop, win):
    spec = stft(jnp.asarray(wav_BW), n_fft, hop, win)
    W = (spec.shape[1] - 1) * hop
    assert np.abs(istft(spec, n_fft, hop, win) - wav_BW[:, :W]).max() < 1e-5
    longer = istft(spec, n_fft, hop, win, 1500)
    assert longer.shape == (2, 1500) and not np.any(longer[:, -100:])


def test_istft_of_any_spectrum_equals_librosa():
    rng = np.random.default_rng(1)
    spec = (rng.standard_normal((2, 9, 21)) + 1j * rng.standard_normal((2, 9, 21))).astype(np.complex64)
    expected = librosa.istft(spec, n_fft=16, hop_length=4, window="hann")
    assert np.abs(istft(jnp.asarray(spec.swapaxes(1, 2)), 16, 4, 16) - expected).max() < 1e-5


@pytest.mark.parametrize("n_fft, hop, win", SIZES)
def test_gradients_are_finite_and_match_a_difference(wav_BW, n_fft, hop, win):
    def loss(wav):
        spec = stft(wav, n_fft, hop, win)
        return jnp.sum(jnp.square(jnp.abs(spec) ** 2)) * 1e-4 + jnp.sum(jnp.square(istft(spec * 1.5, n_fft, hop, win)))

    direction = np.random.default_rng(2).standard_normal(wav_BW.shape).astype(np.float32)
    gradient = jax.jit(jax.grad(loss))(jnp.asarray(wav_BW))
    with jax.enable_x64(True):
        wide, step = wav_BW.astype(np.float64), 1e-4
        slope = (loss(jnp.asarray(wide + step * direction)) - loss(jnp.asarray(wide - step * direction))) / (2 * step)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=2e-3)


def test_frame_is_the_plain_cut():
    wav = np.arange(23, dtype=np.float32)[None]
    frames = frame(jnp.asarray(wav), 7, 3)
    assert np.array_equal(frames[0], np.stack([wav[0, i : i + 7] for i in range(0, 23 - 6, 3)]))


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="needs more than 8 samples, got 8"):
        stft(jnp.zeros((1, 8)), 16, 4, 16)
    with pytest.raises(ValueError, match="window of 20 samples"):
        stft(jnp.zeros((1, 80)), 16, 4, 20)
    with pytest.raises(ValueError, match="expected 9 bins"):
        istft(jnp.zeros((1, 4, 8), jnp.complex64), 16, 4, 16)
