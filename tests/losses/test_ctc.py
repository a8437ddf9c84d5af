"""CTC: against brute force over alignments, and rows that cannot be aligned."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from aqaa_jax.losses.ctc import ctc, greedy_ctc


def collapse(path):
    return tuple(p for previous, p in zip((0, *path), path, strict=False) if p != previous and p != 0)


def test_matches_the_sum_over_all_alignments():
    logits = jax.random.normal(jax.random.key(0), (1, 4, 3))
    log_probs = np.asarray(jax.nn.log_softmax(logits))[0]
    for labels in ((1,), (1, 2), (2, 2), (1, 2, 1)):
        paths = [p for p in itertools.product(range(3), repeat=4) if collapse(p) == labels]
        expected = -np.logaddexp.reduce([sum(log_probs[t, s] for t, s in enumerate(p)) for p in paths])
        padded = np.zeros((1, 5), np.int32)
        padded[0, : len(labels)] = labels
        value, count = ctc(logits, np.array([4]), padded, np.array([len(labels)]))
        np.testing.assert_allclose(value, expected, rtol=1e-4)
        assert count == len(labels)


def test_padding_changes_nothing_and_impossible_rows_are_left_out():
    logits = jax.random.normal(jax.random.key(1), (2, 6, 4))
    labels, lengths = np.array([[1, 2, 0, 0], [3, 3, 3, 3]]), np.array([2, 4])
    value, count = ctc(logits, np.array([5, 6]), labels, lengths)  # 4 labels + 3 repeats need 7 frames
    alone, one = ctc(logits[:1, :5], np.array([5]), labels[:1, :2], lengths[:1])
    np.testing.assert_allclose(value, alone, rtol=1e-5)
    assert count == one == 2
    grad = jax.grad(lambda x: ctc(x, np.array([5, 6]), labels, lengths)[0])(logits)
    assert np.isfinite(grad).all() and not np.abs(grad[1]).any() and not np.abs(grad[0, 5]).any()


def test_greedy_collapses_repeats_and_blanks():
    assert greedy_ctc(jnp.eye(4)[jnp.array([0, 1, 1, 0, 1, 3, 3])]) == [1, 1, 3]
