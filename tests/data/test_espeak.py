"""Speech synthesis: a pure function of the request, with phones in time order."""

from itertools import pairwise

import numpy as np
import pytest

from aqaa_jax.data.espeak import SAMPLE_RATE, Utterance, synthesize

VOICES = ("en-us+f2", "en-gb-x-rp+m3", "en-029+steph")  # f2 and steph have breath noise, which is random in the engine
REQUESTS = [Utterance(text, voice) for voice in VOICES for text in ("Add two and two.", "Which is larger?")]


@pytest.fixture(scope="module")
def speeches():
    return synthesize(REQUESTS, workers=1)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_request_gives_the_same_samples_in_any_order(speeches, workers):
    backwards = synthesize(REQUESTS[::-1] + REQUESTS[:1], workers=workers)
    for first, again in zip(speeches, backwards[len(REQUESTS) - 1 :: -1], strict=True):
        assert np.array_equal(first.wav, again.wav)
        assert first.phones == again.phones
    assert np.array_equal(backwards[-1].wav, speeches[0].wav)


def test_requests_differ_in_samples():
    base = Utterance("Seven.", "en-us+f2", 150, 50)
    others = [
        Utterance("Eight.", "en-us+f2"),
        Utterance("Seven.", "en-us+m3"),
        Utterance("Seven.", "en-us+f2", 190),
        Utterance("Seven.", "en-us+f2", 150, 20),
    ]
    first, *rest = synthesize([base, *others])
    assert all(not np.array_equal(first.wav, other.wav) for other in rest)


def test_speech_is_float_and_phones_lie_inside_it(speeches):
    for speech in speeches:
        assert speech.wav.dtype == np.float32
        assert 0.1 < np.abs(speech.wav).max() <= 1.0
        starts = [start for _, start in speech.phones]
        assert starts == sorted(starts)
        assert starts[0] >= 0 and starts[-1] <= len(speech.wav)


def test_phones_start_where_they_sound():
    speech = synthesize([Utterance("A sassy assassin.", "en-us+m3", 120)])[0]
    bounds = [*speech.phones, ("", len(speech.wav))]

    def high_share(start, stop):
        power = np.abs(np.fft.rfft(speech.wav[start:stop])) ** 2
        return power[int(len(power) * 4000 / (SAMPLE_RATE / 2)) :].sum() / power.sum()

    shares = {"s": [], "æ": []}
    for (name, start), (_, stop) in pairwise(bounds):
        if name in shares:
            shares[name].append(high_share(start, stop))
    assert len(shares["s"]) >= 3 and shares["æ"]
    assert min(shares["s"]) > 3 * max(shares["æ"])


def test_faster_is_shorter():
    slow, fast = synthesize([Utterance("What comes after May?", "en-us", rate) for rate in (120, 200)])
    assert len(slow.wav) > 1.3 * len(fast.wav)


def test_an_unknown_voice_is_named():
    with pytest.raises(ValueError, match="en-zz"):
        synthesize([Utterance("Hello.", "en-us"), Utterance("Hello.", "en-zz")])


def test_progress_counts_every_utterance():
    seen = []
    synthesize(REQUESTS[:3], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert synthesize([]) == []
