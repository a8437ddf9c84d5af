"""Preference pairs: which ids count, how a row is laid out, and that files give back what was written."""

import numpy as np
import pytest

from aqaa_jax.config import VocabConfig
from aqaa_jax.data.buckets import BucketPlan
from aqaa_jax.data.pairs import (
    KINDS,
    Pair,
    bucket_pairs,
    counted,
    data_hash,
    load_pairs,
    padded_lengths,
    pair_batch,
    pair_of,
    save_pairs,
)
from aqaa_jax.tokens.prompt import Example, example
from aqaa_jax.tokens.vocab import AUDIO_END, AUDIO_START, EOT, Vocab

VOCAB = Vocab(VocabConfig(size=360, audio_start=330, linguistic=8, semantic=12))
WOVEN = np.array([325, 326, AUDIO_START, 330, 337, 338, 349, 340, AUDIO_END, EOT], np.int32)


def pair(prompt=3, chosen=WOVEN, rejected=WOVEN[1:]):
    return Pair(np.arange(100, 100 + prompt, dtype=np.int32), chosen, rejected)


def test_kinds_part_every_id():
    assert counted(WOVEN, VOCAB, ["text"]).tolist() == [True] * 2 + [False] * 8
    assert np.flatnonzero(counted(WOVEN, VOCAB, ["audio"])).tolist() == [3, 4, 5, 6, 7]
    assert np.flatnonzero(counted(WOVEN, VOCAB, ["markers"])).tolist() == [2, 8]
    assert np.flatnonzero(counted(WOVEN, VOCAB, ["end"])).tolist() == [9]
    every = np.arange(VOCAB.size)
    assert (np.sum([counted(every, VOCAB, [kind]) for kind in KINDS], axis=0) == 1).all()
    for wrong in (["words"], []):
        with pytest.raises(ValueError, match="expected some of text, audio, markers, end"):
            counted(every, VOCAB, wrong)


def test_a_row_holds_both_answers_as_segments_and_their_own_references():
    one, two = pair(), pair(2, WOVEN[3:], WOVEN[:2])
    numbers = [-np.arange(1, len(p.chosen) + len(p.rejected) + 1, dtype=np.float32) for p in (one, two)]
    rows = [[(one, numbers[0]), (two, numbers[1])], [(two, numbers[1])]]
    batch = pair_batch(rows, 64, VOCAB, tuple(KINDS))
    assert batch["tokens"].shape == (2, 64) and batch["pairs"].tolist() == [[1, 1], [1, 0]]
    ids = np.concatenate([x for p in (one, two) for a in (p.chosen, p.rejected) for x in (p.prompt, a)])
    np.testing.assert_array_equal(batch["tokens"][0, : len(ids)], ids)
    lengths = [3 + 10, 3 + 9, 2 + 7, 2 + 2]
    np.testing.assert_array_equal(batch["segment_ids"][0, : sum(lengths)], np.repeat([1, 2, 3, 4], lengths))
    there = batch["loss_mask"][0] > 0
    np.testing.assert_array_equal(batch["targets"][0, there], np.concatenate([one.chosen, one.rejected, *two[1:]]))
    np.testing.assert_array_equal(batch["reference"][0, there], np.concatenate(numbers))
    np.testing.assert_array_equal(batch["answer"][0, there], np.repeat([1, 2, 3, 4], [10, 9, 7, 2]))
    assert not batch["answer"][0, ~there].any() and not batch["reference"][0, ~there].any()
    text = pair_batch(rows, 64, VOCAB, ("text",))
    assert text["loss_mask"].sum() == 3 + 2 + 2  # no text in WOVEN[3:]
    with pytest.raises(ValueError, match=r"3 reference log-probabilities for answers of 10 \+ 9 ids"):
        pair_batch([[(one, numbers[0][:3])]], 64, VOCAB, ("text",))
    with pytest.raises(ValueError, match="25 ids does not fit a row of 24"):
        pair_batch([[(one, numbers[0])]], 24, VOCAB, ("text",))


def test_the_shape_of_a_batch_follows_from_the_length_of_its_rows():
    """Each shape is compiled for, so unlike answers must not make unlike batches."""
    rng = np.random.default_rng(0)
    chosen = [np.append(rng.integers(100, 330, n), EOT).astype(np.int32) for n in rng.integers(5, 400, 60)]
    pairs = [pair(5, ids, ids[::2]) for ids in chosen]
    numbers = [np.zeros(len(p.chosen) + len(p.rejected), np.float32) for p in pairs]
    plan = BucketPlan({"pairs": padded_lengths(pairs)}, {"pairs": 1.0}, tokens=2048, steps=80, seed=0)
    batches = bucket_pairs(plan, pairs, numbers, VOCAB, ("text",))
    shapes = {(batch["tokens"].shape, batch["targets"].shape) for batch in map(batches, range(80))}
    assert len(shapes) == len({tokens for tokens, _ in shapes}) <= 8
    assert {tokens[1] for tokens, _ in shapes} <= {64, 96, 128, 192, 256, 384, 512, 768}


def test_a_pair_is_two_documents_of_one_prompt():
    one = pair()
    documents = [example(one.prompt, answer) for answer in (one.chosen, one.rejected)]
    for ours, theirs in zip(pair_of(*documents), one, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match=r"answer other prompts \(3 and 2 ids\)"):
        pair_of(documents[0], example(one.prompt[:2], one.rejected))
    with pytest.raises(ValueError, match="does not end with its targets"):
        pair_of(documents[0], Example(one.prompt, np.zeros(3, bool)))


def test_pairs_come_back_and_their_hash_tells_them_apart(tmp_path):
    pairs = [pair(), pair(2, WOVEN[3:], WOVEN[:2])]
    save_pairs(tmp_path / "pairs.npz", pairs)
    again = load_pairs(tmp_path / "pairs.npz")
    for ours, theirs in zip(pairs, again, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    assert data_hash(again) == data_hash(pairs) != data_hash(pairs[::-1])
    moved = [pairs[0]._replace(prompt=pairs[0].prompt[:-1], chosen=np.append(pairs[0].prompt[-1:], WOVEN))]
    assert data_hash(moved) != data_hash(pairs[:1])
