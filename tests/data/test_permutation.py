"""Shuffles are bijections without a table; draws meet the shares, and every row comes once per epoch of its stream."""

import numpy as np
import pytest

from aqaa_jax.data.permutation import CYCLE, Mixture, Permutation, apportioned


@pytest.mark.parametrize("size", [*range(1, 70), 255, 256, 257, 1000])
def test_every_position_goes_to_one_place(size):
    shuffle = Permutation(size, 3, 1)
    assert sorted(shuffle[i] for i in range(size)) == list(range(size))


def test_epochs_differ_and_the_seed_decides():
    orders = {tuple(Permutation(40, seed, epoch)[i] for i in range(40)) for seed in range(3) for epoch in range(5)}
    assert len(orders) == 15
    assert [Permutation(40, 0, 1)[i] for i in range(40)] == [Permutation(40, 0, 1)[i] for i in range(40)]


def test_places_are_even_and_neighbours_unrelated():
    """Chi-square of (position, place) counts near its degrees of freedom; an affine map has one step for all."""
    size, epochs = 12, 3000
    counts = np.zeros((size, size))
    for epoch in range(epochs):
        shuffle = Permutation(size, 7, epoch)
        counts[np.arange(size), [shuffle[i] for i in range(size)]] += 1
    expected = epochs / size
    assert np.sum((counts - expected) ** 2 / expected) < 1.5 * (size - 1) ** 2
    order = np.array([Permutation(1000, 1)[i] for i in range(1000)])
    steps = np.diff(order) % 1000
    assert len(np.unique(steps)) > 550  # a random order: 632
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.1


def test_outside_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        Permutation(0)
    for position in (-1, 5):
        with pytest.raises(IndexError):
            Permutation(5)[position]


def test_shares_are_met_and_every_row_comes_once_per_epoch():
    rows, weights = {"a": 37, "b": 5, "c": 300}, {"a": 3.0, "b": 1.0, "c": 4.0}
    mixture = Mixture(rows, weights, seed=1)
    draws = [mixture[i] for i in range(4 * CYCLE)]
    for cycle in range(4):
        names = [name for name, _, _ in draws[cycle * CYCLE : (cycle + 1) * CYCLE]]
        assert [names.count(n) for n in "abc"] == [384, 128, 512]
    for name, size in rows.items():
        mine = [(row, visit) for n, row, visit in draws if n == name]
        mine = [row for row, _ in sorted(mine, key=lambda pair: pair[1])]
        for epoch in range(len(mine) // size):
            assert sorted(mine[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert len({tuple(name for name, _, _ in draws[c * CYCLE : c * CYCLE + 50]) for c in range(4)}) == 4


@pytest.mark.parametrize(
    ("rows", "weights", "message"),
    [
        ({"a": 1}, {"b": 1.0}, "expected the streams"),
        ({"a": 0}, {"a": 1.0}, "no rows"),
        ({"a": 1}, {"a": 0.0}, "positive number"),
        ({"a": 1, "b": 1}, {"a": 1.0, "b": 1e-6}, "less than 1/1024"),
    ],
)
def test_bad_mixtures_are_named(rows, weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture(rows, weights, 0)


def test_seats_add_up():
    for weights in ([1, 1, 1], [0.2, 3, 1.7, 9], [5]):
        seats = apportioned(weights, 100)
        assert sum(seats) == 100
        assert np.abs(np.array(seats) - 100 * np.array(weights) / np.sum(weights)).max() < 1
