"""Figures against known values and against signals whose pitch and length are known."""

import math

import numpy as np
import pytest

from aqaa_jax.data.espeak import SAMPLE_RATE, Utterance, synthesize
from aqaa_jax.data.voices import ANSWER_STYLES, ANSWER_VOICE
from aqaa_jax.evaluation.metrics import (
    active_seconds,
    bootstrap,
    character_edits,
    character_error_rate,
    exact_match,
    length_ratio,
    median_f0,
    proportion,
    repeats,
    speaking_rate,
    word_edits,
    word_error_rate,
)

RATE = 16000


def tone(frequency, seconds=0.5, rate=RATE):
    phase = 2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate
    return sum(np.sin(k * phase) / k for k in range(1, 8)).astype(np.float32) * 0.3


def test_wilson_interval():
    # Brown, Cai and DasGupta's example values are reproduced by the closed form: 8 of 10.
    estimate = proportion([True] * 8 + [False] * 2)
    assert estimate.value == 0.8 and estimate.n == 10
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.4902, 0.9433)
    assert proportion([True] * 5).high == 1.0 and proportion([False] * 5).low == 0.0
    assert 0.5 < proportion([True] * 5).low < 1.0
    assert proportion([]) == (0.0, 0.0, 1.0, 0)


def test_bootstrap_interval():
    x = np.random.default_rng(0).normal(3.0, 1.0, 400)
    estimate = bootstrap(x)
    assert estimate.low < estimate.value < estimate.high
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * x.std() / 20, rel=0.1)
    assert bootstrap(x) == estimate
    assert bootstrap([1.0, 2.0, 30.0], statistic="median").value == 2.0
    assert math.isnan(bootstrap([]).value)
    with pytest.raises(ValueError, match="mode"):
        bootstrap(x, statistic="mode")


def test_edits_of_words_and_characters():
    assert character_edits("kitten", "sitting") == (3, 7)
    assert word_edits("a b", "b") == (1, 1) and word_edits("", "a b") == (2, 2) and word_edits("a", "") == (1, 0)
    assert word_edits("今天天氣", "今天 天气！") == (1, 4)  # Chinese: a word is a character


def test_error_rates_and_match():
    references = ["The day is Monday.", "You said apple."]
    rate = word_error_rate(["the day was monday", "you said apple"], references)
    assert rate.value == pytest.approx(1 / 7) and (rate.low, rate.high) == (0.0, 0.25) and rate.n == 2
    assert character_error_rate(["the day is monday", "you said apples"], references).value == pytest.approx(1 / 31)
    assert exact_match(["the day is monday!", "you said"], references).value == 0.5
    assert exact_match([""], [""]).value == 0.0
    assert math.isnan(word_error_rate([], []).value) and math.isnan(word_error_rate(["a"], [""]).value)
    with pytest.raises(ValueError, match="longer"):
        word_error_rate(["a"], references)


def test_stutters_are_found():
    for text in ("one one one", "The day is the day is Monday.", "so it goes, so it goes"):
        assert repeats(text), text
    for text in ("", "one one", "the answer is the one", "一 二 一 三"):
        assert not repeats(text), text


@pytest.mark.parametrize("frequency", [85.0, 143.0, 189.0, 245.0, 400.0])
@pytest.mark.parametrize("rate", [16000, 22050])
def test_pitch_of_known_tones(frequency, rate):
    wav = np.concatenate([np.zeros(rate // 4), tone(frequency, rate=rate), np.zeros(rate // 4)])
    wav = wav + np.random.default_rng(0).normal(0, 1e-3, len(wav))
    assert median_f0(wav, rate) == pytest.approx(frequency, rel=0.01)


def test_no_pitch_without_voice():
    assert math.isnan(median_f0(np.zeros(RATE), RATE))
    assert math.isnan(median_f0(np.random.default_rng(0).normal(0, 0.1, RATE), RATE))
    assert math.isnan(median_f0(np.ones(10), RATE))


def test_length_and_rate():
    short, long = tone(200, 0.5), tone(200, 1.0)
    padded = np.concatenate([np.zeros(RATE), short, np.zeros(RATE // 2)])
    assert active_seconds(padded, RATE) == pytest.approx(0.5, abs=0.02)
    assert speaking_rate(padded, long, RATE) == pytest.approx(2.0, rel=0.05)
    assert length_ratio(short, long) == 0.5
    assert active_seconds(np.zeros(RATE), RATE) == 0.0 == active_seconds(np.zeros(0), RATE)
    assert math.isnan(speaking_rate(np.zeros(RATE), long, RATE))
    assert math.isnan(length_ratio(short, np.zeros(0)))


def test_styles_of_the_answer_voice_are_told_apart():
    text = "The month is April."
    speeches = synthesize([Utterance(text, ANSWER_VOICE, *how) for how in ANSWER_STYLES.values()])
    wavs = {style: speech.wav for style, speech in zip(ANSWER_STYLES, speeches, strict=True)}
    rates = {style: speaking_rate(wav, wavs["neutral"], SAMPLE_RATE) for style, wav in wavs.items()}
    pitches = {style: median_f0(wav, SAMPLE_RATE) for style, wav in wavs.items()}
    assert rates["slow"] < 0.85 and rates["fast"] > 1.15
    assert pitches["high"] > 1.2 * pitches["neutral"] > 1.2 * pitches["low"] / 0.85
    assert abs(rates["high"] - 1) < 0.08 and abs(pitches["slow"] / pitches["neutral"] - 1) < 0.05
