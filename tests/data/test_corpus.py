"""The spoken sets: deterministic, separated, balanced; rendered once and read back; phone labels."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from aqaa_jax.data import rendering, voices
from aqaa_jax.data.corpus import (
    answer_id,
    answer_utterances,
    changing_utterances,
    codec_utterances,
    question_utterances,
    spoken_in_answer_voice,
    voice_utterances,
)
from aqaa_jax.data.espeak import SAMPLE_RATE, Utterance, synthesize
from aqaa_jax.data.phones import (
    BLANK,
    frame_labels,
    frames_needed,
    phone_id,
    phone_inventory,
    phone_sequence,
)
from aqaa_jax.data.questions import FAMILIES, STYLES, answers, held_out, new_questions, unseen_numbers
from aqaa_jax.data.rendering import render
from aqaa_jax.data.words import dictionary_words, general_text


def base(voice: str) -> str:
    return voice.partition("+")[2]


def test_sets_are_deterministic_and_grow_by_appending():
    for make in (codec_utterances, voice_utterances, question_utterances):
        assert make(40, 1) == make(40, 1) == make(60, 1)[:40]
        assert make(40, 1) != make(40, 2)
        assert len({item.id for item in make(60, 1)}) == 60


def test_answers_are_indexed():
    items = answer_utterances()
    assert len(items) == len(answers()) * len(STYLES)
    for k, item in enumerate(items):
        assert item.answer_id == k == answer_id(item.answer, item.style)
        assert item.utterance.voice == voices.ANSWER_VOICE
        assert (item.utterance.rate_wpm, item.utterance.pitch) == voices.ANSWER_STYLES[item.style]
    assert len({item.utterance for item in items}) == len(items)


def test_questions_are_balanced_and_styled():
    items = question_utterances(2000, 0)
    families = Counter(item.family for item in items)
    assert set(families) == set(FAMILIES)
    assert min(families.values()) > 140 and max(families.values()) < 260
    styles = Counter(item.style for item in items)
    assert 0.2 < 1 - styles["neutral"] / 2000 < 0.3
    assert {i.style for i in question_utterances(50, 0, style_share=0.0)} == {"neutral"}
    proportional = Counter(i.family for i in question_utterances(2000, 0, balance=1.0))
    assert proportional["comparison"] > 5 * proportional["capitals"]
    spoken = answer_utterances()
    assert all((spoken[i.answer_id].answer, spoken[i.answer_id].style) == (i.answer, i.style) for i in items)


def test_splits_are_separate():
    train, spoken, asked = (question_utterances(400, 0, split) for split in ("train", "new_voices", "new_questions"))
    assert held_out().isdisjoint(i.question for i in train + spoken)
    assert {i.question for i in asked} <= held_out()
    for item in spoken:
        assert item.utterance.voice in voices.NEW_VOICES
        assert item.utterance.rate_wpm in voices.NEW_RATES and item.utterance.pitch in voices.NEW_PITCHES
    for item in train + asked + codec_utterances(400, 0):
        assert item.utterance.voice in voices.TRAINING_VOICES
        assert item.utterance.rate_wpm in voices.TRAINING_RATES and item.utterance.pitch in voices.TRAINING_PITCHES
    both = question_utterances(50, 0, "new_questions", voices_of="new")
    assert all(i.utterance.voice in voices.NEW_VOICES and i.question in held_out() for i in both)
    with pytest.raises(ValueError, match="dev"):
        question_utterances(1, 0, "dev")


def test_held_out_speakers_are_in_no_training_voice():
    assert len(voices.TRAINING_VOICES) == len(set(voices.TRAINING_VOICES)) >= 36
    assert len(voices.NEW_VOICES) == 5 and len(voices.NEW_RATES) == len(voices.NEW_PITCHES) == 2
    known = {base(v) for v in (*voices.TRAINING_VOICES, voices.ANSWER_VOICE)}
    assert known.isdisjoint(base(v) for v in voices.NEW_VOICES)
    assert set(voices.TRAINING_RATES).isdisjoint(voices.NEW_RATES)
    assert set(voices.TRAINING_PITCHES).isdisjoint(voices.NEW_PITCHES)


def test_every_voice_speaks():
    requests = [Utterance("One.", v) for v in (*voices.TRAINING_VOICES, *voices.NEW_VOICES)]
    for speech in synthesize(requests):
        assert len(speech.wav) > 0.2 * SAMPLE_RATE and np.abs(speech.wav).max() > 0.05


def test_no_training_text_holds_a_number_from_41_to_99():
    rng = random.Random(5)
    texts = [general_text(rng) for _ in range(4000)]
    texts += [i.utterance.text for i in codec_utterances(500, 3) + question_utterances(500, 3) + answer_utterances()]
    texts += list(dictionary_words())
    larger = re.compile(
        r"\b(fift|sixt|sevent|eight|ninet)(y|ies|i)|\bforty\W+(one|two|three|four|five|six|seven|eight|nine)"
    )
    assert not [t for t in texts if larger.search(t.lower())]
    assert all(larger.search(number) for number in unseen_numbers())
    assert any("forty" in t.lower() for t in texts)
    questions = {p for q in new_questions() for p in q.phrasings}
    assert questions.isdisjoint(texts)


def test_render_keeps_reads_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(rendering, "SHARD", 3)
    items = voice_utterances(8, 0)
    seen = []
    clips = render(items, tmp_path, (16000, 22050), progress=lambda done, total: seen.append(done))
    assert seen == list(range(1, 9)) and len(clips) == 8
    direct = synthesize([i.utterance for i in items])
    for clip, speech in zip(clips, direct, strict=True):
        wav = clip.wavs[22050]
        assert wav.dtype == np.float32 and np.array_equal(wav, speech.wav[: len(wav)])
        assert not speech.wav[len(wav) :].any()
        assert abs(len(clip.wavs[16000]) - clip.seconds * 16000) <= 1
        assert all(0 <= start <= clip.seconds for _, start in clip.phones)
    shards = sorted(tmp_path.glob("*.npz"))
    assert len(shards) == 3 and not list(tmp_path.glob("*.part"))
    times = {p: p.stat().st_mtime_ns for p in shards}
    shards[1].unlink()
    (tmp_path / f"{shards[1].name}.1.part").write_bytes(b"cut short")
    again = render(items, tmp_path, (16000, 22050))
    for a, b in zip(clips, again, strict=True):
        assert np.array_equal(a.wavs[16000], b.wavs[16000]) and a.phones == b.phones
    assert all(p.stat().st_mtime_ns == times[p] for p in (shards[0], shards[2]))
    assert np.array_equal(again[-1].wavs[22050], again[7].wavs[22050])
    with pytest.raises(IndexError):
        again[8]
    monkeypatch.setattr(rendering, "speech_stream", lambda *_: pytest.fail("spoke again"))
    assert len(render(items[:6], tmp_path, (16000, 22050))) == 6


def test_resampling_keeps_a_tone():
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    wav = rendering.resample(np.sin(2 * np.pi * 440 * time).astype(np.float32), SAMPLE_RATE, 16000)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert len(wav) == 16000
    np.testing.assert_allclose(wav[500:-500], expected[500:-500], atol=2e-4)


def test_phones_of_the_corpus_are_in_the_inventory():
    inventory = phone_inventory()
    assert inventory[BLANK] == "" and len(set(inventory)) == len(inventory)
    requests = [i.utterance for i in codec_utterances(60, 9)]
    spoken = [name for s in synthesize(requests) for name, _ in s.phones]
    known = [name for name in spoken if name in inventory]
    assert len(known) > 0.97 * len(spoken)
    assert all(inventory[phone_id(name)] == name for name in known)
    assert phone_id("a:") == phone_id("aː") and phone_id("") == BLANK
    assert phone_id("ɹʲ") == phone_id("ɹ")
    assert phone_id("☃") == BLANK


def test_frame_labels_follow_the_events():
    phones = (("t", 0.10), ("uː", 0.20), ("", 0.30), ("t", 0.34))
    labels = frame_labels(phones, 20, 50.0)
    t, u = phone_id("t"), phone_id("uː")
    assert labels.tolist() == [0] * 5 + [t] * 5 + [u] * 5 + [0] * 2 + [t] * 3
    assert labels.dtype == np.int32
    assert phone_sequence(phones).tolist() == [t, u, t]
    assert frames_needed(np.array([t, t, u])) == 4
    assert frame_labels((), 3).tolist() == [0, 0, 0]


def test_texts_in_the_answer_voice():
    items = spoken_in_answer_voice(list(unseen_numbers())[:2], "fast")
    assert [i.utterance.text for i in items] == ["forty one", "forty two"]
    assert all(i.utterance.voice == voices.ANSWER_VOICE and i.utterance.rate_wpm > 150 for i in items)


def test_questions_that_ask_for_two_styles_keep_their_answer():
    items, said = changing_utterances(200, 0), answer_utterances()
    assert items[:20] == changing_utterances(20, 0)
    assert len({(i.style, i.then) for i in items}) == 12
    for item in items:
        assert [s for s, _ in item.spoken] == [item.style, item.then]
        assert item.spoken[0][1] == item.answer_id
        assert all(said[k].answer == item.answer for _, k in item.spoken)
    assert all(i.question not in held_out() for i in items)
    assert all(i.question in held_out() for i in changing_utterances(20, 0, "new_questions"))
    assert [len(i.spoken) for i in question_utterances(3, 0)] == [1, 1, 1]
