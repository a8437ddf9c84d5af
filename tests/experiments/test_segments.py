"""Cutting an answer into halves and telling their styles: on recordings whose styles are known."""

import numpy as np
import pytest

from aqaa_jax.data.corpus import answer_id, answer_utterances
from aqaa_jax.data.espeak import synthesize
from aqaa_jax.experiments import segments

RATE = 22050


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The recordings of one sentence in every style, without rendering the other 985."""
    items = answer_utterances()
    sentence = items[0].answer
    styles = ("neutral", "slow", "fast", "high", "low")
    spoken = synthesize([items[answer_id(sentence, s)].utterance for s in styles])
    wavs = {s: one.wav[: np.flatnonzero(one.wav)[-1] + RATE // 20] for s, one in zip(styles, spoken, strict=True)}

    class Known(segments.Recorded):
        def __init__(self):
            self._known = {
                (sentence, s, t): segments._measured(w, RATE, t) for s, w in wavs.items() for t in (True, False)
            }

    return sentence, wavs, Known()


def test_a_pause_in_the_middle_cuts(recorded):
    _, wavs, _ = recorded
    gap = np.zeros(round(0.15 * RATE), np.float32)
    both = np.concatenate([wavs["slow"], gap, wavs["fast"]])
    first, second = segments.halves(both, RATE)
    assert abs(len(first) - len(wavs["slow"])) < 0.2 * RATE and len(first) + len(second) == len(both)
    assert segments.halves(np.zeros(RATE, np.float32), RATE) is None
    assert segments.halves(np.sin(np.arange(2 * RATE) / 20).astype(np.float32), RATE) is None
    assert segments.halves(np.zeros(0, np.float32), RATE) is None


def test_recordings_have_the_styles_they_were_spoken_in_and_no_others(recorded):
    sentence, wavs, voice = recorded
    for style in ("slow", "fast", "high", "low"):
        for other, wav in wavs.items():
            in_time = {"slow", "fast"} >= {style, other}
            in_pitch = {"high", "low"} >= {style, other}
            if style == other or other == "neutral" or in_time or in_pitch:
                assert voice.has(style, wav, RATE, sentence) == (style == other), (style, other)
    assert not voice.has("slow", wavs["slow"], RATE, "")


def test_the_control_of_true_recordings_passes_and_its_reverse_fails(recorded):
    sentence, wavs, voice = recorded
    gap = np.zeros(round(0.17 * RATE), np.float32)
    answer = np.concatenate([wavs["slow"], gap, wavs["high"]])
    asked = [(sentence, "slow", "high"), (sentence, "high", "slow"), ("The day is Monday.", "slow", "high")]
    rows = segments.judged([answer, answer, answer, None], [*asked, asked[0]], RATE, voice)
    assert rows[0] == (True, True, True, True)
    assert rows[1][2] is False and rows[1][3] is True
    assert rows[2] == (True, True, True, False)
    assert rows[3] == (False,) * 4
