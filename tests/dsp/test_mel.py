"""Log-mel features: shapes, the published floors and clear refusals."""

import numpy as np
import pytest

from aqaa_jax.config import MelConfig
from aqaa_jax.dsp.mel import mel_filters, vocoder_mel, whisper_log_mel

SMALL = MelConfig(sample_rate=8000, n_fft=256, hop=64, win=256, num_mels=20, fmax=4000.0)


@pytest.mark.parametrize("samples", [480, 640, 16000, 16159])
def test_whisper_frames(samples):
    mel_TM = whisper_log_mel(np.random.default_rng(0).standard_normal(samples).astype(np.float32))
    assert mel_TM.shape == (samples // 160, 128) and mel_TM.dtype == np.float32
    assert mel_TM.max() - mel_TM.min() <= 2.0 + 1e-6  # 8 / 4


def test_whisper_silence_is_flat():
    assert np.allclose(whisper_log_mel(np.zeros(1600, np.float32)), (-10 + 4) / 4)


def test_whisper_bins_follow_a_tone():
    peaks = [
        whisper_log_mel(np.sin(2 * np.pi * hertz * np.arange(4000) / 16000).astype(np.float32))[10].argmax()
        for hertz in (300, 1000, 3000)
    ]
    assert peaks == sorted(peaks) and len(set(peaks)) == 3


@pytest.mark.parametrize("samples", [640, 641, 703])
def test_vocoder_frames(samples):
    mel_TM = vocoder_mel(np.random.default_rng(0).standard_normal(samples).astype(np.float32), SMALL)
    assert mel_TM.shape == (samples // 64, 20) and np.isfinite(mel_TM).all()


def test_vocoder_floor():
    flat = vocoder_mel(np.zeros(640, np.float32), SMALL)
    assert flat.min() >= np.log(np.float32(1e-5)) - 1e-5


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="200 samples are too few"):
        whisper_log_mel(np.zeros(200, np.float32))
    with pytest.raises(ValueError, match="96 samples are too few"):
        vocoder_mel(np.zeros(96, np.float32), SMALL)


def test_filters_are_cached_and_shaped():
    assert mel_filters(8000, 256, 20) is mel_filters(8000, 256, 20)
    assert mel_filters(8000, 256, 20).shape == (129, 20)
