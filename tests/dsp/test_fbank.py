"""The filter bank and its front end: streamed = offline, counts, dither."""

from pathlib import Path

import numpy as np
import pytest

from aqaa_jax.config import LinguisticConfig
from aqaa_jax.dsp import fbank

CONFIG = LinguisticConfig()
LENGTHS = [0, 1, 399, 400, 879, 880, 3839, 3840, 3841, 4799, 4800, 7680, 11111, 15360, 20000]


def noise(samples, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


@pytest.mark.parametrize("samples", LENGTHS)
def test_streamed_equals_offline_wherever_it_is_cut(samples):
    wav, rng = noise(samples), np.random.default_rng(samples)
    expected = fbank.lfr(wav, CONFIG)
    assert len(expected) == fbank.count_frames(samples, CONFIG)
    for cuts in (0, 1, 4):
        bounds = [0, *np.sort(rng.integers(0, samples + 1, cuts)).tolist(), samples]
        state, out = fbank.start(CONFIG), []
        for i in range(len(bounds) - 1):
            piece = wav[bounds[i] : bounds[i + 1]]
            frames, state = fbank.push(state, piece, CONFIG, final=i == len(bounds) - 2)
            out.append(frames)
        streamed = np.concatenate(out)
        assert streamed.shape == expected.shape
        assert np.abs(streamed - expected).max(initial=0.0) < 1e-4
        assert len(state.samples_W) == 0 and state.frames_TM is None


def test_streamed_dither_follows_the_frames():
    wav = noise(9000)
    dither = np.random.default_rng(1).standard_normal((54, 400)).astype(np.float32)
    expected = fbank.lfr(wav, CONFIG, dither)
    assert np.abs(expected - fbank.lfr(wav, CONFIG)).max() > 1e-4
    first, state = fbank.push(fbank.start(CONFIG), wav[:5000], CONFIG, noise_TW=dither)
    last, _ = fbank.push(state, wav[5000:], CONFIG, final=True, noise_TW=dither[22:])
    assert np.abs(np.concatenate([first, last]) - expected).max() < 1e-4


def test_a_frame_depends_on_its_own_samples_only():
    wav = noise(4000)
    changed = wav.copy()
    changed[1600:] = 0.0
    before, after = fbank.fbank(wav, CONFIG), fbank.fbank(changed, CONFIG)
    untouched = (1600 - 400) // 160 + 1
    assert np.array_equal(before[:untouched], after[:untouched])
    assert np.abs(before[untouched] - after[untouched]).max() > 1e-3


def test_stacks_are_the_frames_of_the_filter_bank():
    wav = noise(18000)
    frames = fbank.fbank(wav, CONFIG)
    stacks = fbank.lfr(wav, CONFIG).reshape(-1, 7, 80)
    assert np.array_equal(stacks[0], frames[[0, 0, 0, 0, 1, 2, 3]])
    assert np.array_equal(stacks[1], frames[3:10])
    assert np.array_equal(stacks[-1, -1], frames[-1])


def test_filters_cover_each_frequency_once():
    filters = fbank.kaldi_filters(16000, 512, 80)
    assert filters.shape == (257, 80) and not filters[0].any() and filters.min() >= 0
    inside = filters[4:240].sum(axis=1)
    assert np.allclose(inside, 1.0, atol=1e-6)


def test_silence_is_the_floor():
    assert np.allclose(fbank.fbank(np.zeros(800, np.float32), CONFIG), np.log(fbank.FLOOR))


def test_povey_window_gives_torchaudios_filter_bank(golden):
    """The file holds ``torchaudio.compliance.kaldi.fbank`` (2.11) of this piece: defaults, 80 bins, no dither."""
    wav = golden("audio/waveforms.npz")["speech"][4000:13600]
    expected = np.load(Path(__file__).parent / "data" / "povey_fbank.npz")["fbank"]
    got = fbank.log_energies(wav, 16000, 80, povey=True)
    assert got.shape == expected.shape == (58, 80) and expected.min() == np.float32(np.log(fbank.FLOOR))
    np.testing.assert_allclose(got, expected, atol=3e-4)
    assert np.abs(fbank.log_energies(wav, 16000, 80) - expected).max() > 0.1  # another window is another bank
