"""Weaving and unweaving: round trips, the documented layout, and repair of misaligned audio."""

import itertools

import numpy as np
import pytest

from aqaa_jax.config import VocabConfig, WeaveConfig
from aqaa_jax.tokens import interleave as il
from aqaa_jax.tokens.vocab import AUDIO_END, AUDIO_START, BOT, EOT, TEXT_END, TEXT_START, Vocab

VOCAB = Vocab(VocabConfig(size=1000, audio_start=512, linguistic=64, semantic=128))
WEAVES = {
    "10:15": WeaveConfig(),
    "6:50": WeaveConfig(text=6, linguistic=20, semantic=30),
    "3:5": WeaveConfig(text=3, linguistic=2, semantic=3),
    "1:10": WeaveConfig(text=1, linguistic=4, semantic=6),
    "audio_only": WeaveConfig(pattern="audio_only"),
    "text_cot": WeaveConfig(pattern="text_cot"),
}


def random_segment(rng, max_text=40, max_groups=14, min_groups=0):
    text = rng.integers(68, 512, rng.integers(0, max_text + 1))
    groups = int(rng.integers(min_groups, max_groups + 1))
    audio = il.weave_audio(rng.integers(0, 64, 2 * groups), rng.integers(0, 128, 3 * groups), VOCAB)
    return il.Segment(text, audio)


def test_audio_round_trip_and_dropped_remainders():
    rng = np.random.default_rng(0)
    for num_linguistic, num_semantic in itertools.product(range(8), range(11)):
        linguistic, semantic = rng.integers(0, 64, num_linguistic), rng.integers(0, 128, num_semantic)
        ids = il.weave_audio(linguistic, semantic, VOCAB)
        groups = min(num_linguistic // 2, num_semantic // 3)
        assert ids.dtype == np.int32 and len(ids) == 5 * groups
        back_linguistic, back_semantic = il.unweave_audio(ids, VOCAB)
        assert (back_linguistic == linguistic[: 2 * groups]).all() and (back_semantic == semantic[: 3 * groups]).all()
    with pytest.raises(ValueError, match="4 audio ids"):
        il.unweave_audio(ids[:4], VOCAB)
    with pytest.raises(ValueError, match="linguistic id"):
        il.unweave_audio(ids[[2, 1, 0, 3, 4]], VOCAB)


@pytest.mark.parametrize("name", WEAVES)
def test_answer_round_trip(name):
    rng, weave = np.random.default_rng(1), WEAVES[name]
    for _ in range(40):
        segments = [random_segment(rng) for _ in range(rng.integers(1, 4))]
        text = np.concatenate([s.text for s in segments]) if name != "audio_only" else np.zeros(0)
        audio = il.unweave_audio(np.concatenate([s.audio for s in segments]), VOCAB)
        for strategy in (il.marker_preserving, il.pre_interleaved, il.marker_removal):
            ids = strategy(segments, weave)
            back = il.unweave_answer(ids, VOCAB)
            assert back.text.tolist() == text.tolist()
            assert back.linguistic.tolist() == audio[0].tolist() and back.semantic.tolist() == audio[1].tolist()
            assert back.problems == il.Problems()
            spoken = sum(len(s.audio) > 0 for s in segments)
            spans = spoken if strategy is not il.marker_removal else min(spoken, 1)
            assert (ids == AUDIO_START).sum() == (ids == AUDIO_END).sum() == spans
            assert ids[-1] == EOT and (ids == EOT).sum() == 1 and ids.dtype == np.int32


def layout(ids):
    """Run lengths of an answer: ``t10 S a15 … E EOT``."""
    names = {AUDIO_START: "S", AUDIO_END: "E", EOT: "EOT"}
    kinds = [names.get(i) or ("a" if i >= VOCAB.audio_start else "t") for i in ids.tolist()]
    runs = [(k, len(list(g))) for k, g in itertools.groupby(kinds)]
    return " ".join(k if k in ("S", "E", "EOT") else f"{k}{n}" for k, n in runs)


def segment(num_text, groups):
    audio = il.weave_audio(np.zeros(2 * groups, int), np.zeros(3 * groups, int), VOCAB)
    return il.Segment(np.full(num_text, 400), audio)


def test_layout_of_one_segment():
    def one(num_text, groups, name="10:15"):
        return layout(il.weave_answer(*segment(num_text, groups), WEAVES[name]))

    assert one(24, 11) == "t10 S a15 t10 a15 t4 a25 E EOT"  # the tail: audio runs on
    assert one(45, 4) == "t10 S a15 t10 a5 E t25 EOT"  # the audio ends first
    assert one(20, 6) == "t10 S a15 t10 a15 E EOT"
    assert one(10, 4) == "t10 S a20 E EOT"
    assert one(12, 0) == "t12 EOT"
    assert one(0, 4) == "S a20 E EOT"
    assert one(0, 0) == "EOT"
    assert one(8, 12, "6:50") == "t6 S a50 t2 a10 E EOT"
    assert one(8, 3, "3:5") == "t3 S a5 t3 a5 t2 a5 E EOT"
    assert one(24, 11, "text_cot") == "t24 S a55 E EOT"
    assert one(24, 11, "audio_only") == "S a55 E EOT"


def test_layout_of_two_segments():
    pair, weave = [segment(12, 4), segment(15, 5)], WEAVES["10:15"]
    assert layout(il.marker_preserving(pair, weave)) == "t10 S a15 t10 a5 E S a10 t7 a15 E EOT"
    assert layout(il.pre_interleaved(pair, weave)) == "t10 S a15 t2 a5 E t10 S a15 t5 a10 E EOT"
    assert layout(il.marker_removal(pair, weave)) == "t10 S a15 t10 a15 t7 a15 E EOT"


def test_bad_patterns_and_audio():
    for bad in (
        WeaveConfig(linguistic=5, semantic=9),
        WeaveConfig(linguistic=6, semantic=10),
        WeaveConfig(linguistic=3, semantic=5),
        WeaveConfig(linguistic=0, semantic=0),
        WeaveConfig(text=0),
        WeaveConfig(pattern="chorus"),
    ):
        with pytest.raises(ValueError):
            il.weave_answer([400], [], bad)
    with pytest.raises(ValueError, match="4 ids"):
        il.weave_answer([400], [512] * 4, WeaveConfig())


def fewest_drops_by_search(kinds):
    """Longest kept subsequence of the form (LLSSS)*, by trying everything."""
    best = 0
    for size in range(len(kinds), 0, -1):
        if size % 5 == 0 and any(
            "".join(kinds[i] for i in keep) == "LLSSS" * (size // 5)
            for keep in itertools.combinations(range(len(kinds)), size)
        ):
            best = size
            break
    return len(kinds) - best


def test_regroup_drops_as_few_as_possible():
    rng = np.random.default_rng(2)
    for _ in range(80):
        length = int(rng.integers(0, 13))
        kinds = "".join(rng.permuted(list(("LLSSS" * 3)[:length])) if rng.random() < 0.5 else ("LLSSS" * 3)[:length])
        kinds = "".join(k for k in kinds if rng.random() < 0.9)
        ids = [512 if k == "L" else 576 for k in kinds]
        kept, dropped = il.regroup(ids, VOCAB)
        assert dropped == fewest_drops_by_search(kinds) == len(ids) - len(kept), kinds
        il.unweave_audio(kept, VOCAB)


def test_regroup_keeps_groups_contiguous():
    def mark(kinds):  # every id distinguishable
        return [(512 if k == "L" else 576) + i for i, k in enumerate(kinds)]

    def kept(kinds):
        ids = mark(kinds)
        return [ids.index(i) for i in il.regroup(ids, VOCAB)[0].tolist()]

    assert kept("LLLSSS") == [1, 2, 3, 4, 5]
    assert kept("SSLLSSS") == [2, 3, 4, 5, 6]  # EditX issue 66: stray semantic ids in front
    assert kept("LLSSLLSSS") == [4, 5, 6, 7, 8]
    assert kept("LLSSSS") == [0, 1, 2, 3, 4]
    assert kept("LLSSSLLSS") == [0, 1, 2, 3, 4]


def test_unweave_survives_anything():
    rng = np.random.default_rng(3)
    for _ in range(80):
        ids = rng.integers(-10, 1100, rng.integers(0, 60))
        ids = np.where(rng.random(len(ids)) < 0.2, rng.integers(0, 68, len(ids)), ids)
        back = il.unweave_answer(ids, VOCAB)
        assert 3 * len(back.linguistic) == 2 * len(back.semantic)
    assert il.unweave_answer([], VOCAB).problems == il.Problems(unfinished=1)


def test_problems_are_counted():
    good = il.weave_answer(*segment(24, 11), WEAVES["10:15"]).tolist()
    stray = [*good[:11], 600, *good[11:]]  # one semantic id right after <audio_start>
    back = il.unweave_answer(stray, VOCAB)
    assert len(back.linguistic) == 22 and back.problems == il.Problems(audio=1)
    assert il.unweave_answer(good[:-1], VOCAB).problems == il.Problems(unfinished=1)
    assert il.unweave_answer([*good, 0, 0, 400, 600], VOCAB).problems == il.Problems(after_end=2)
    assert il.unweave_answer([BOT, 999, 5000, *good], VOCAB).problems == il.Problems(control=1, unused=2)
    assert il.unweave_answer([i for i in good if i != AUDIO_END], VOCAB).problems == il.Problems(markers=1)
    assert il.unweave_answer([i for i in good if i != AUDIO_START], VOCAB).problems == il.Problems(markers=1)
    with_text_markers = [TEXT_START, *good[:5], TEXT_END, *good[5:]]
    back = il.unweave_answer(with_text_markers, VOCAB)
    assert len(back.text) == 24 and back.problems == il.Problems()


def test_split_transcript():
    answer = il.weave_answer(*segment(4, 2), WEAVES["10:15"])
    quoted = np.concatenate([[TEXT_START, 400, 401, TEXT_END], answer])
    transcript, rest = il.split_transcript(quoted)
    assert transcript.tolist() == [400, 401] and rest.tolist() == answer.tolist()
    assert il.split_transcript(answer)[1].tolist() == answer.tolist() and not len(il.split_transcript([])[0])
    transcript, rest = il.split_transcript([TEXT_START, 400, EOT])
    assert transcript.tolist() == [400] and rest.tolist() == [EOT]
    assert il.split_transcript([TEXT_START, 400])[0].tolist() == [400]


def test_join_takes_the_strategy_of_the_weave():
    segments = [random_segment(np.random.default_rng(i), min_groups=2) for i in range(2)]
    for name in ("marker_preserving", "marker_removal", "pre_interleaved"):
        np.testing.assert_array_equal(
            il.join(segments, WeaveConfig(joining=name)), getattr(il, name)(segments, WeaveConfig())
        )
    with pytest.raises(
        ValueError, match="joining is 'glue'; expected one of marker_preserving, marker_removal, pre_inter"
    ):
        il.join(segments, WeaveConfig(joining="glue"))
