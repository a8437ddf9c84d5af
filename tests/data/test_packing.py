"""A plan holds every example that fits once, is full, and is never worse than first-fit-decreasing."""

import numpy as np
import pytest

from aqaa_jax.data.corpus import question_utterances
from aqaa_jax.data.packing import pack

RNG = np.random.default_rng(0)
LENGTHS = {
    "uniform": RNG.integers(1, 257, 1500),
    "narrow": RNG.integers(80, 130, 1500),
    "heavy": np.clip((RNG.pareto(1.2, 1500) * 20).astype(int) + 1, 1, 256),
    "equal": np.full(300, 100),
    "whole": np.full(20, 256),
}


def first_fit_decreasing(lengths, capacity):
    left = []
    for length in sorted(lengths.tolist(), reverse=True):
        at = next((i for i, room in enumerate(left) if room >= length), None)
        if at is None:
            left.append(capacity - length)
        else:
            left[at] -= length
    return len(left)


@pytest.mark.parametrize("name", LENGTHS)
def test_every_example_once_within_capacity_in_no_more_rows_than_first_fit_decreasing(name):
    lengths = LENGTHS[name]
    plan = pack(lengths, 256)
    np.testing.assert_array_equal(np.sort(plan.members), np.arange(len(lengths)))
    assert all(lengths[plan[row]].sum() <= 256 and len(plan[row]) for row in range(len(plan)))
    assert len(plan) <= first_fit_decreasing(lengths, 256)
    assert plan.fill(lengths, 256) == pytest.approx(lengths.sum() / (256 * len(plan)))


def test_the_same_arguments_give_the_same_plan_and_windows_keep_everything():
    lengths = LENGTHS["narrow"]
    for one, other in zip(pack(lengths, 512, seed=1), pack(lengths, 512, seed=1), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(pack(lengths, 512, seed=1).members, pack(lengths, 512, seed=2).members)
    small = pack(lengths, 512, window=100)
    np.testing.assert_array_equal(np.sort(small.members), np.arange(len(lengths)))


def test_companions_come_from_anywhere():
    plan = pack(LENGTHS["narrow"], 512)
    spread = [np.ptp(plan[row]) for row in range(len(plan))]
    assert np.mean(spread) > 0.4 * len(LENGTHS["narrow"])


def test_what_is_too_long_is_left_out_and_listed():
    plan = pack(np.array([10, 300, 20, 257]), 256)
    assert plan.left_out.tolist() == [1, 3] and sorted(plan.members.tolist()) == [0, 2]
    assert len(pack(np.array([300]), 256)) == 0 and len(pack(np.zeros(0, int), 256)) == 0


def test_the_pocket_corpus_is_nearly_full():
    """Questions of the pocket corpus; audio at 41.67 ids a second, spoken at the voice's words per minute."""
    lengths = []
    for item in question_utterances(1500, 0):
        words = len(item.utterance.text.split())
        groups = round((words * 60 / item.utterance.rate_wpm + 0.2) / 0.12)
        lengths.append(16 + 5 * groups + words)
    assert pack(np.array(lengths), 1024).fill(np.array(lengths), 1024) >= 0.97
    assert pack(np.array(lengths), 512).fill(np.array(lengths), 512) >= 0.95


@pytest.mark.parametrize(("lengths", "capacity", "message"), [([1], 0, "row length is 0"), ([0], 8, "length 0")])
def test_bad_sizes_are_named(lengths, capacity, message):
    with pytest.raises(ValueError, match=message):
        pack(np.array(lengths), capacity)
