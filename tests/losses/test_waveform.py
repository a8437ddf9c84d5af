"""Spectral losses between waveforms."""

import jax
import numpy as np
import pytest

from aqaa_jax.config import MelConfig
from aqaa_jax.dsp.mel import vocoder_mel
from aqaa_jax.losses.waveform import log_mel, mel_l1, multi_resolution_stft

SMALL = ((64, 16, 64), (128, 32, 100))
MEL = MelConfig(sample_rate=8000, n_fft=128, hop=32, win=128, num_mels=10, fmax=4000.0)


def wav(rows=2, samples=640, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal((rows, samples)).astype(np.float32)


def stft_loss(a, b, lengths=None):
    return multi_resolution_stft(a, b, lengths, SMALL)


def mel_loss(a, b, lengths=None):
    return mel_l1(a, b, MEL, lengths)


@pytest.mark.parametrize("loss", [stft_loss, mel_loss])
def test_exact_prediction_has_no_loss(loss):
    value, count = loss(wav(), wav())
    assert abs(float(value)) < 1e-6 and count > 0


@pytest.mark.parametrize("loss", [stft_loss, mel_loss])
def test_padding_does_not_leak(loss):
    lengths = np.array([640, 320])
    a, b = wav(), wav(seed=1)
    dirty = a.copy()
    dirty[1, 320:] = 5.0
    value, count = loss(a, b, lengths)
    np.testing.assert_allclose(loss(dirty, b, lengths)[0], value, rtol=1e-6)
    slope = np.asarray(jax.grad(lambda x: loss(x, b, lengths)[0])(a))
    assert not slope[1, 320:].any() and slope[1, :320].any()
    assert count <= loss(a, b)[1]


@pytest.mark.parametrize("loss", [stft_loss, mel_loss])
def test_gradient_is_finite_on_silence_and_at_the_optimum(loss):
    silence = np.zeros((1, 640), np.float32)
    for a, b in ((silence, wav(1)), (wav(1), silence), (silence, silence), (wav(1), wav(1))):
        assert np.isfinite(jax.grad(lambda x, b=b: loss(x, b)[0])(a)).all()


@pytest.mark.parametrize("loss", [stft_loss, mel_loss])
def test_loss_grows_with_the_error(loss):
    target, noise = wav(), wav(seed=1)
    near, far = (float(loss(target + scale * noise, target)[0]) for scale in (0.05, 0.5))
    assert 0 < near < far


def test_rows_are_averaged():
    a, b = wav(), wav(seed=1)
    value, count = stft_loss(a, b)
    rows = [stft_loss(a[i : i + 1], b[i : i + 1]) for i in range(2)]
    np.testing.assert_allclose(value / count, np.mean([float(v / c) for v, c in rows]), rtol=1e-5)


def test_traced_mel_is_the_mel_of_the_host():
    for config in (MEL, MelConfig()):
        x = wav(1, 4000)
        np.testing.assert_allclose(log_mel(x, config)[0], vocoder_mel(x[0], config), atol=1e-3)


def test_different_shapes_are_named():
    with pytest.raises(ValueError, match="640"):
        stft_loss(wav(), wav(samples=320))
