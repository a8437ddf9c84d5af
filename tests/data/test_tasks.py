"""Tasks over a spoken corpus: what each example asks, shows and scores."""

from dataclasses import replace

import numpy as np
import pytest

from aqaa_jax.config import VocabConfig, WeaveConfig
from aqaa_jax.data.corpus import answer_id, answer_utterances, changing_utterances, question_utterances
from aqaa_jax.data.tasks import TASKS, SpokenSet, SpokenTasks, load_audio, save_audio, shares
from aqaa_jax.tokens.interleave import unweave_answer, weave_audio
from aqaa_jax.tokens.text import train_pocket
from aqaa_jax.tokens.vocab import AUDIO_START, EOT, TokenClass, Vocab

VOCAB = Vocab(VocabConfig(size=512 + 5120, audio_start=512))


def woven(rng, groups):
    return weave_audio(rng.integers(0, 1024, 2 * groups), rng.integers(0, 4096, 3 * groups), VOCAB)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    rng = np.random.default_rng(0)
    questions, answers = question_utterances(12, 0), answer_utterances()
    text = train_pocket(
        [i.utterance.text for i in questions] * 20, tmp_path_factory.mktemp("text") / "t.model", VOCAB, size=400
    )
    spoken = SpokenSet(questions, [woven(rng, int(rng.integers(8, 20))) for _ in questions])
    said = SpokenSet(answers, [woven(rng, int(rng.integers(8, 14))) for _ in answers])
    voice = SpokenSet(answers[:3], said.audio[:3])
    return SpokenTasks(spoken, said, voice, text, VOCAB, WeaveConfig())


def test_targets_of_every_task(tasks):
    rng = np.random.default_rng(0)
    for task in TASKS:
        ids, mask = tasks.example(task, 1, rng)
        assert ids.dtype == np.int32 and len(ids) == len(mask) and ids[-1] == EOT and mask[-1]
        if task != "continuation":
            first = int(np.argmax(mask))
            assert mask[first:].all() and not mask[:first].any()
    item = tasks.questions.items[1]
    ids, mask = tasks.example("asr", 1, rng)
    assert tasks.text.decode_span(ids[mask][:-1]) == item.utterance.text
    ids, mask = tasks.example("aqta", 1, rng)
    assert tasks.text.decode_span(ids[mask][:-1]) == item.answer
    for task in ("aqtaa", "tqtaa"):
        ids, mask = tasks.example(task, 1, rng)
        answer = unweave_answer(ids[mask], VOCAB)
        assert tasks.text.decode_span(answer.text) == item.answer and not any(answer.problems)
        again = weave_audio(answer.linguistic, answer.semantic, VOCAB)
        np.testing.assert_array_equal(again, tasks.answers.audio[item.answer_id])


def test_spoken_tasks_hear_the_question_and_written_ones_do_not(tasks):
    rng = np.random.default_rng(0)
    for task in ("asr", "aqta", "aqtaa", "transcript_first"):
        ids, mask = tasks.example(task, 2, rng)
        heard = ids[~mask][VOCAB.is_audio(ids[~mask])]
        np.testing.assert_array_equal(heard, tasks.questions.audio[2])
    ids, mask = tasks.example("tqtaa", 2, rng)
    assert not VOCAB.is_audio(ids[~mask]).any()


def test_lengths_are_those_of_the_examples(tasks):
    lengths, rng = tasks.lengths(), np.random.default_rng(1)
    assert set(lengths) == set(TASKS) and len(lengths["tts"]) == len(tasks.answers.items) + 3
    for task in TASKS:
        assert lengths[task][3] == len(tasks.example(task, 3, rng)[0])


def test_code_noise_changes_codes_within_their_codebook(tasks):
    noisy = SpokenTasks(tasks.questions, tasks.answers, tasks.voice, tasks.text, VOCAB, tasks.weave, code_noise=0.5)
    ids, mask = noisy.example("asr", 0, np.random.default_rng(0))
    heard, clean = ids[~mask][VOCAB.is_audio(ids[~mask])], tasks.questions.audio[0]
    np.testing.assert_array_equal(VOCAB.classify(heard), VOCAB.classify(clean))
    assert 0.3 < np.mean(heard != clean) < 0.7


def test_emphasis_repeats_the_items_of_a_family(tasks):
    items = tasks.questions.items
    family = items[0].family
    members = [i for i, item in enumerate(items) if item.family == family]
    more = tasks.questions.emphasised((family, family))
    assert list(more.items) == [*items, *(items[i] for i in members * 2)]
    assert all(a is tasks.questions.audio[i] for a, i in zip(more.audio[len(items) :], members * 2, strict=True))
    assert list(tasks.questions.emphasised(()).items) == list(items)
    with pytest.raises(ValueError, match="no question of family or style 'algebra'"):
        tasks.questions.emphasised(("algebra",))


def test_lengths_of_some_tasks_are_those_of_the_examples(tasks):
    lengths = tasks.lengths(("tqta", "tts"))
    assert set(lengths) == {"tqta", "tts"}
    rng = np.random.default_rng(0)
    assert lengths["tqta"].tolist() == [
        len(tasks.example("tqta", i, rng)[0]) for i in range(len(tasks.questions.items))
    ]


def test_ragged_files_and_shares(tasks, tmp_path):
    save_audio(tmp_path / "a.npz", tasks.questions.audio)
    for a, b in zip(load_audio(tmp_path / "a.npz"), tasks.questions.audio, strict=True):
        np.testing.assert_array_equal(a, b)
    assert shares({"asr": 1.0, "tts": 0.0, "code_noise": 0.1, "emphasis": ()}) == {"asr": 1.0}
    with pytest.raises(ValueError, match="unknown tasks"):
        shares({"sing": 1.0})
    with pytest.raises(ValueError, match="unknown task"):
        tasks.example("sing", 0, np.random.default_rng(0))


def test_one_codebook_alone_leaves_everything_else_as_it_stands(tasks):
    rng = np.random.default_rng(0)
    for task in ("aqtaa", "tts", "continuation"):
        ids, mask = tasks.example(task, 1, rng)
        kinds = VOCAB.classify(ids)
        for stream, other in (("linguistic", TokenClass.SEMANTIC), ("semantic", TokenClass.LINGUISTIC)):
            alone = replace(tasks, streams=(stream,))
            ours, its_mask = alone.example(task, 1, rng)
            np.testing.assert_array_equal(ours, ids[kinds != other])
            np.testing.assert_array_equal(its_mask, mask[kinds != other])
            assert alone.lengths([task])[task][1] == len(ours) < len(ids)
    with pytest.raises(ValueError, match=r"streams \['voice'\]; expected some of linguistic, semantic"):
        replace(tasks, streams=("voice",)).example("tts", 0, rng)


def test_an_answer_asked_for_twice_is_two_segments_joined_as_the_weave_says(tasks):
    items = changing_utterances(4, 0)
    both = replace(tasks, questions=SpokenSet(items, tasks.questions.audio[:4]))
    for i, item in enumerate(items):
        first, second = (tasks.answers.audio[answer_id(item.answer, s)] for s in (item.style, item.then))
        for joining, spans in (("marker_preserving", 2), ("pre_interleaved", 2), ("marker_removal", 1)):
            woven = replace(both, weave=WeaveConfig(joining=joining))
            ids, mask = woven.example("aqtaa", i, np.random.default_rng(0))
            assert np.sum(ids[mask] == AUDIO_START) == spans
            np.testing.assert_array_equal(ids[mask][VOCAB.is_audio(ids[mask])], np.concatenate([first, second]))
        ids, mask = both.example("aqta", i, np.random.default_rng(0))
        assert tasks.text.decode_span(ids[mask][:-1]) == f"{item.answer} {item.answer}"
