"""Batches are a pure function of the step, of one task and length, and epochs see every example once."""

import numpy as np
import pytest

from aqaa_jax.data.buckets import BucketPlan, coarse
from aqaa_jax.data.language import language_batch

LENGTHS = {"a": np.array([10, 20, 33, 40, 60, 64, 65]), "b": np.arange(5, 95)}


def plan(steps=400, seed=0, shares=None):
    return BucketPlan(LENGTHS, shares or {"a": 1.0, "b": 3.0}, tokens=256, steps=steps, seed=seed)


def test_same_seed_same_batches_whatever_the_order_of_asking():
    one, other = plan(), plan()
    backwards = {step: other[step] for step in reversed(range(50))}
    for step in range(50):
        assert one[step].task == backwards[step].task
        np.testing.assert_array_equal(one[step].rows, backwards[step].rows)
    assert any((plan(seed=1)[s].task, *plan(seed=1)[s].rows) != (one[s].task, *one[s].rows) for s in range(20))


def test_rows_fit_their_length_and_fill_the_budget():
    for step in range(100):
        task, rows, length = plan()[step]
        lengths = LENGTHS[task][rows]
        assert lengths.max() <= length and lengths.min() > length - 32
        assert len(rows) == 256 // length


def test_every_example_of_a_bucket_is_seen_once_per_epoch():
    steps, chosen = plan(steps=4000), []
    for step in range(4000):
        task, rows, length = steps[step]
        if task == "b" and length == 64:
            chosen.extend(rows.tolist())
    members = np.flatnonzero((LENGTHS["b"] > 32) & (LENGTHS["b"] <= 64))
    for epoch in range(len(chosen) // len(members)):
        np.testing.assert_array_equal(np.sort(chosen[epoch * len(members) : (epoch + 1) * len(members)]), members)


def test_shares_count_examples():
    counts = {"a": 0, "b": 0}
    steps = plan(steps=6000)
    for step in range(6000):
        counts[steps[step].task] += len(steps[step].rows)
    assert counts["b"] / counts["a"] == pytest.approx(3.0, rel=0.15)


@pytest.mark.parametrize("shares, message", [({"c": 1.0}, "no examples"), ({"a": 0.0}, "positive share")])
def test_bad_shares_are_named(shares, message):
    with pytest.raises(ValueError, match=message):
        plan(shares=shares)


def test_language_batch_gathers_exactly_the_targets():
    ids = np.arange(100, 112)
    mask = np.arange(12) >= 7
    batch = language_batch([(ids, mask), (ids[:4], np.array([False, False, True, False]))], 16)
    for row, (expected_ids, expected_mask) in enumerate([(ids, mask), (ids[:4], np.array([0, 0, 1, 0], bool))]):
        keep = batch["loss_mask"][row] > 0
        np.testing.assert_array_equal(batch["targets"][row][keep], expected_ids[expected_mask])
        np.testing.assert_array_equal(batch["tokens"][row][batch["source"][row][keep] + 1], expected_ids[expected_mask])
        assert batch["segment_ids"][row].sum() == len(expected_ids)
    with pytest.raises(ValueError, match="does not fit"):
        language_batch([(ids, mask)], 8)


def test_coarse_lengths_are_few_and_hold_what_they_are_for():
    lengths = np.arange(1, 5000)
    rounded = coarse(lengths)
    assert np.all(rounded >= lengths) and np.all(rounded[96:] < 1.5 * lengths[96:])
    assert np.unique(rounded).tolist() == [64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144]
    np.testing.assert_array_equal(coarse(rounded), rounded)
