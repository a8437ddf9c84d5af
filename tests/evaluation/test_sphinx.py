"""The recogniser: hears what was said, nothing where nothing was said, and does not remember."""

import numpy as np
import pytest

from aqaa_jax.data.espeak import SAMPLE_RATE, Utterance, synthesize
from aqaa_jax.data.questions import answers
from aqaa_jax.data.voices import ANSWER_STYLES, ANSWER_VOICE
from aqaa_jax.evaluation.sphinx import Recogniser, normalize_text, transcribe_many

SENTENCES = answers()[::17]


@pytest.fixture(scope="module")
def wavs():
    return [s.wav for s in synthesize([Utterance(t, ANSWER_VOICE, *ANSWER_STYLES["neutral"]) for t in SENTENCES])]


@pytest.fixture(scope="module")
def recogniser():
    return Recogniser(answers())


@pytest.fixture(scope="module")
def heard(recogniser, wavs):
    return [recogniser.transcribe(wav, SAMPLE_RATE) for wav in wavs]


def test_answers_are_recognised(heard):
    assert sum(a == b for a, b in zip(heard, SENTENCES, strict=True)) >= len(SENTENCES) - 1
    assert set(heard) <= {*answers(), ""}


def test_the_result_depends_on_nothing_before_it(recogniser, wavs, heard):
    noise = np.random.default_rng(1).normal(0, 0.1, 16000)
    recogniser.transcribe(noise, 16000)
    assert [recogniser.transcribe(wav, SAMPLE_RATE) for wav in wavs[::-1][:4]] == heard[::-1][:4]
    assert recogniser.transcribe(wavs[0] * 0.01, SAMPLE_RATE) == heard[0]


def test_worker_processes_give_the_same(wavs, heard):
    seen = []
    many = transcribe_many(answers(), wavs, SAMPLE_RATE, workers=2, progress=lambda done, total: seen.append(done))
    assert many == heard
    assert sorted(seen) == list(range(1, len(wavs) + 1))
    assert transcribe_many(answers(), [], 16000) == []


def test_no_false_accepts(recogniser):
    noise = np.random.default_rng(0).normal(0, 0.1, 24000)
    tone = 0.3 * np.sin(2 * np.pi * 300 * np.arange(24000) / 16000)
    for wav in (np.zeros(16000), np.zeros(0), 1e-6 * noise, noise, tone, noise[:160]):
        assert recogniser.transcribe(wav, 16000) == ""


def test_a_part_of_a_sentence_does_not_count(recogniser):
    said = synthesize([Utterance("The opposite of hot is", ANSWER_VOICE), Utterance("The answer is", ANSWER_VOICE)])
    for speech in said:
        assert recogniser.transcribe(speech.wav, SAMPLE_RATE) == ""


def test_sentences_that_begin_alike_are_kept_apart():
    sentences = ["one", "one two", "one two three", "four"]
    recogniser = Recogniser(sentences)
    said = synthesize([Utterance(f"{s}.", ANSWER_VOICE, 130) for s in sentences])
    assert [recogniser.transcribe(s.wav, SAMPLE_RATE) for s in said] == sentences


def test_errors_are_named(recogniser):
    with pytest.raises(ValueError, match="xyzzyx"):
        Recogniser(["The xyzzyx."])
    with pytest.raises(RuntimeError, match="xyzzyx"):
        transcribe_many(["The xyzzyx."], [np.ones(16000)], 16000)
    with pytest.raises(ValueError, match="finite"):
        recogniser.transcribe(np.full(16000, np.nan), 16000)


def test_normalize_text():
    assert normalize_text("  The Answer is: TWELVE, exactly!") == "the answer is twelve exactly"
    assert normalize_text("L’été, 今天!") == "l'été 今天"


def test_without_sentences_any_words_are_heard():
    said = synthesize([Utterance("The answer is seven.", ANSWER_VOICE)])
    heard = transcribe_many([], [said[0].wav, np.zeros(8000)], SAMPLE_RATE, workers=1)
    assert "answer" in heard[0].split() and heard[1] == ""
