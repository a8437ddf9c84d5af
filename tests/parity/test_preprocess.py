"""Waveform preparation and feature extraction against the reference data."""

import numpy as np
import pytest

from aqaa_jax.config import MelConfig
from aqaa_jax.dsp.mel import vocoder_mel
from aqaa_jax.dsp.wav import energy_norm, read, resample, trim_silence

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("wave", ["chirp", "speech"])
def test_files_and_arrays_are_the_same_signal(golden, wave):
    wav, rate = read(golden(f"audio/{wave}.wav"))
    assert rate == 16000 and wav.dtype == np.float32
    assert np.array_equal(wav, golden("audio/waveforms.npz")[wave])


@pytest.mark.parametrize("wave", ["chirp", "speech"])
def test_energy_and_trim(golden, wave):
    expected = golden("paraformer_linguistic/preprocess.npz")
    normed = energy_norm(golden("audio/waveforms.npz")[wave])
    trimmed = trim_silence(normed, 16000)
    assert trimmed.shape == expected[f"{wave}_energy_trim"].shape
    assert np.abs(normed - expected[f"{wave}_energy"]).max() < 1e-6
    assert np.abs(trimmed - expected[f"{wave}_energy_trim"]).max() < 1e-6


def test_resampling(golden):
    data = golden("paraformer_linguistic/preprocess.npz")
    wav, rate = data["resample_in"], int(data["resample_in_rate"])
    for new_rate, source, expected in [
        (16000, wav, data["resample_16k"]),
        (22050, wav[: len(wav) // 2], data["resample_22050"]),
    ]:
        ours = resample(source, rate, new_rate)
        assert ours.shape == expected.shape
        assert np.abs(ours - expected).max() < 2e-6


def test_vocoder_mel(golden):
    data = golden("hift/mel_frontend.npz")
    mel_TM = vocoder_mel(data["wave"], MelConfig())
    assert mel_TM.shape == data["mel"].T.shape
    assert np.abs(mel_TM - data["mel"].T).max() < 2e-4
