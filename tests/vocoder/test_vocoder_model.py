"""The host's door: lists of tokens in, waveforms out, by key."""

import dataclasses

import jax
import numpy as np
import pytest

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.vocoder.flow import mel_frames
from aqaa_jax.vocoder.model import Vocoder, bucket


@pytest.fixture(scope="module")
def vocoder(tiny):
    return Vocoder.of(tiny.VOCODER, tiny.flow(), tiny.hift())


@pytest.fixture(scope="module")
def rows(tiny):
    rng = np.random.default_rng(0)
    return [rng.integers(0, tiny.FLOW.vocab, n) for n in (9, 5, 0)]


def test_lengths_and_types(tiny, vocoder, rows):
    wavs = vocoder.synthesize(rows, key=jax.random.key(0))
    assert [w.shape for w in wavs] == [(mel_frames(len(r), tiny.FLOW) * 256,) for r in rows]
    assert all(w.dtype == np.float32 and np.isfinite(w).all() for w in wavs)


def test_same_key_same_waveform_and_batched_is_single(vocoder, rows):
    wavs = vocoder.synthesize(rows, key=jax.random.key(0))
    again = vocoder.synthesize(rows, key=jax.random.key(0))
    other = vocoder.synthesize(rows, key=jax.random.key(1))
    np.testing.assert_array_equal(wavs[0], again[0])
    assert not np.array_equal(wavs[0], other[0])
    single = vocoder.synthesize(rows[:1], key=jax.random.key(0))
    np.testing.assert_allclose(single[0], wavs[0], atol=1e-4)


def test_longer_neighbour_changes_nothing(tiny, vocoder, rows):
    """The bucket grows with the longest row; the first row keeps its noise and its samples."""
    alone = vocoder.synthesize(rows[:1], key=jax.random.key(0))
    long = np.arange(30) % tiny.FLOW.vocab
    np.testing.assert_allclose(vocoder.synthesize([rows[0], long], key=jax.random.key(0))[0], alone[0], atol=1e-4)


def test_prompt_and_speaker_matter_and_are_not_in_the_answer(tiny, vocoder, rows):
    key = jax.random.key(0)
    plain = vocoder.synthesize(rows[:1], key=key)[0]
    prompt = {"prompt_tokens": np.arange(6), "prompt_mel": tiny.array(11, tiny.MELS)}
    prompted = vocoder.synthesize(rows[:1], **prompt, key=key)[0]
    spoken = vocoder.synthesize(rows[:1], speaker=tiny.array(6), key=key)[0]
    assert plain.shape == prompted.shape == spoken.shape
    assert not np.allclose(plain, prompted) and not np.allclose(plain, spoken)


def test_nothing_to_say(vocoder):
    assert vocoder.synthesize([], key=jax.random.key(0)) == []
    assert [w.size for w in vocoder.synthesize([np.zeros(0, int)], key=jax.random.key(0))] == [0]


def test_errors_name_the_value(tiny, vocoder):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="audio token 40"):
        vocoder.synthesize([np.array([1, 40])], key=key)
    with pytest.raises(ValueError, match="audio token -1"):
        vocoder.synthesize([np.array([-1])], key=key)
    with pytest.raises(ValueError, match="both"):
        vocoder.synthesize([np.array([1])], prompt_tokens=np.array([1]), key=key)
    with pytest.raises(ValueError, match="float32"):
        vocoder.synthesize([np.ones(3, np.float32)], key=key)
    wrong = dataclasses.replace(
        tiny.VOCODER, flow=dataclasses.replace(tiny.FLOW, mel=dataclasses.replace(tiny.FLOW.mel, hop=200))
    )
    with pytest.raises(ValueError, match="200"):
        Vocoder.of(wrong, tiny.flow(), tiny.hift())


def test_names_are_the_parts(vocoder):
    names = named_weights(vocoder)
    assert {n.split(".")[0] for n in names} == {"flow", "hift"}
    assert {n.removeprefix("flow.") for n in names if n.startswith("flow.")} == set(named_weights(vocoder.flow))


def test_buckets_are_few_and_tight():
    sizes = [bucket(n) for n in range(1, 3000)]
    assert all(s >= n for n, s in enumerate(sizes, 1)) and sizes == sorted(sizes)
    assert all(s <= 1.13 * n for n, s in enumerate(sizes, 1) if n > 256)
    assert len(set(sizes)) < 40
