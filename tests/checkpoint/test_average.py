"""Weighted means: against plain NumPy, bit for bit where nothing is averaged, and refusals by name."""

import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from aqaa_jax.checkpoint.average import Input, Int8Tables, Mean, Unpacked, boxes, cell, runs, shares
from aqaa_jax.checkpoint.files import int8_rows


class Arrays:
    """A source in memory."""

    def __init__(self, **arrays):
        self.arrays, self.files = arrays, [Path("file")]
        self.shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}
        self.largest = 0

    def read(self, name, rows):
        block = self.arrays[name][rows]
        self.largest = max(self.largest, block.size)
        return block


def arrays(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    weights = {"a": rng.standard_normal((7, 5, 3)), "b": rng.standard_normal((4,)), "c": rng.standard_normal(())}
    return {name: np.asarray(x, dtype) for name, x in weights.items()} | {"ids": np.arange(6)}


def sources(dtype=np.float32, count=3):
    return [Arrays(**arrays(seed, dtype)) for seed in range(count)]


def mean(sources, weights, **options):
    return Mean([Input(f"in{i}", w, s) for i, (s, w) in enumerate(zip(sources, weights, strict=True))], **options)


def whole(source, name, limit=8):
    out = np.full(source.shapes[name].shape, -99, source.shapes[name].dtype)
    for box in boxes(out.shape, limit):
        out[box] = source.read(name, box)
    return out


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 4), (3, 4, 5), (2, 1, 6, 3), (0, 4), (3, 0)])
@pytest.mark.parametrize("limit", [1, 5, 7, 1000])
def test_boxes_tile_the_tensor_in_order(shape, limit):
    seen = np.zeros(shape, int)
    order = []
    for box in boxes(shape, limit):
        seen[box] += 1
        order += np.arange(seen.size).reshape(shape)[box].reshape(-1).tolist()
        assert seen[box].size <= limit
    assert np.all(seen == 1) and order == list(range(seen.size))  # consecutive: what a file writer relies on


def test_boxes_follow_chunks():
    shape, chunk, limit = (10, 9), (4, 6), 8
    size = cell(shape, limit, chunk)
    assert math.prod(size) <= limit and all(c % s == 0 for c, s in zip(chunk, size, strict=True))
    seen, of = np.zeros(shape, int), []
    for box in boxes(shape, limit, chunk):
        seen[box] += 1
        chunks = {(s.start // c, (s.stop - 1) // c) for s, c in zip(box, chunk, strict=True)}
        assert all(first == last for first, last in chunks)  # inside one chunk
        assert all(s.start % c == 0 for s, c in zip(box, size, strict=True))  # on one grid
        of.append(tuple(s.start // c for s, c in zip(box, chunk, strict=True)))
    assert np.all(seen == 1)
    assert len(list(itertools.groupby(of))) == len(set(of)) == 6  # a chunk is left once


@pytest.mark.parametrize("weights", [(5, 5, 1), (1, 2, 0), (0.3, 0.3, 0.4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_equals_numpy(weights, dtype):
    parts = sources(dtype)
    result = mean(parts, weights, accumulate=np.float64)
    for name in ("a", "b", "c"):
        shared = [(w / sum(weights), x.arrays[name].astype(np.float64)) for w, x in zip(weights, parts, strict=True)]
        expected = sum(share * x for share, x in shared)
        got = whole(result, name)
        assert got.dtype == dtype
        if dtype == np.float64:
            np.testing.assert_allclose(got, expected, rtol=1e-13)
        else:
            np.testing.assert_array_equal(got, expected.astype(dtype))
    np.testing.assert_array_equal(whole(result, "ids"), np.arange(6))


def test_the_papers_recipe():
    sft1, sft2, dpo = sources()
    got = whole(mean([sft1, sft2, dpo], (5, 5, 1)), "a")
    a, b, c = (x.arrays["a"].astype(np.float64) for x in (sft1, sft2, dpo))
    np.testing.assert_allclose(got, a + 5 / 11 * (b - a) + 1 / 11 * (c - a), rtol=1e-5, atol=1e-7)


def test_order_matters_only_to_rounding():
    parts, weights = sources(), (5, 5, 1)
    for order in itertools.permutations(range(3)):
        got = mean([parts[i] for i in order], [weights[i] for i in order])
        np.testing.assert_allclose(whole(got, "a"), whole(mean(parts, weights), "a"), rtol=1e-6, atol=1e-7)


def test_many_small_sixteen_bit_steps_are_not_lost():
    ones = [Arrays(x=np.full(3, 1 + i / 128, ml_dtypes.bfloat16)) for i in range(64)]
    expected = np.mean([np.float32(1 + i / 128) for i in range(64)])
    assert np.all(whole(mean(ones, [1] * 64, dtype=np.float32), "x") == expected)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_one_weight_returns_that_input_bit_for_bit(dtype):
    odd = np.array([0.0, -0.0, np.inf, -np.inf, 1e-40, 3.1], dtype)
    first = Arrays(x=odd, ids=np.arange(3))
    bits = np.frombuffer(np.float32(np.nan).tobytes(), np.uint32)
    first.arrays["x"].reshape(-1).view(f"u{odd.itemsize}")[5] = (bits >> (32 - 8 * odd.itemsize))[0] + 5  # a rare NaN
    other = Arrays(x=np.full(6, np.nan, dtype), ids=np.arange(3) + 1)  # not read: it weighs nothing
    got = mean([first, other, other], (1, 0, 0)).read("x", (slice(0, 6),))
    assert got.tobytes() == odd.tobytes()


def test_what_all_agree_on_is_not_rounded():
    x = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    got = mean([Arrays(x=x), Arrays(x=x.copy()), Arrays(x=x.copy())], (5, 5, 1))
    assert whole(got, "x").tobytes() == x.tobytes()


def test_dtypes_may_differ_and_be_chosen():
    parts = [Arrays(x=np.array([1.0, 3.0], np.float16)), Arrays(x=np.array([2.0, 4.5], np.float32))]
    for dtype in (None, np.float32, jnp.dtype("bfloat16")):
        got = whole(mean(parts, (1, 1), dtype=dtype), "x")
        assert got.dtype == (dtype or np.float16)
        np.testing.assert_array_equal(got.astype(np.float32), np.array([1.5, 3.75]))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x.pop("b"), "in1: tensor 'b' of in0 is missing"),
        (lambda x: x.update(more=x["b"]), "in1: tensor 'more' is not in in0"),
        (lambda x: x.update(a=x["a"].T), r"in1: tensor 'a' has shape \(3, 5, 7\), expected \(7, 5, 3\)"),
        (lambda x: x.update(b=np.zeros(4, int)), "in1: tensor 'b' has dtype int64, expected float32 as in in0"),
        (lambda x: x.update(ids=np.zeros(6, np.int32)), "in1: tensor 'ids' has dtype int32, expected int64 as in in0"),
    ],
)
@pytest.mark.parametrize("weight", [1, 0])
def test_mismatches_are_refused_by_name(change, message, weight):
    other = arrays(1)
    change(other)
    with pytest.raises(ValueError, match=message):
        mean([Arrays(**arrays(0)), Arrays(**other)], (1, weight))


def test_unequal_integers_and_overflow_are_refused_by_name():
    other = arrays(1) | {"ids": np.arange(6) + 1}
    with pytest.raises(ValueError, match=r"in1: tensor 'ids'.*differs from that of in0"):
        whole(mean([Arrays(**arrays(0)), Arrays(**other)], (1, 1)), "ids")
    with pytest.raises(ValueError, match="tensor 'x': a value of 70000 does not fit into float16"):
        whole(mean([Arrays(x=np.full(2, 7e4, np.float32))], (1,), dtype=np.float16), "x")


@pytest.mark.parametrize("weights", [(1, -1), (0, 0), (1, math.nan), (1, math.inf)])
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match="weight"):
        shares(weights)


def test_no_more_than_a_slice_is_read():
    parts = sources()
    result = mean(parts, (1, 1, 1))
    blocks = list(runs(result, "a", limit=31))
    assert [len(b) for b in blocks] == [30, 30, 30, 15] and all(s.largest == 30 for s in parts)
    np.testing.assert_array_equal(np.concatenate(blocks), whole(result, "a", 10**6).reshape(-1))
    assert max(len(b) for b in runs(result, "a", limit=7)) == 6  # also less than a row


def test_int8_tables_are_averaged_as_the_numbers_they_stand_for():
    tables = [np.random.default_rng(i).standard_normal((9, 4)).astype(np.float32) * (i + 1) for i in range(2)]
    stored = [Arrays(t=rows, **{"t.scale": scale}) for rows, scale in map(int8_rows, tables)]
    real = [Unpacked(s) for s in stored]
    assert set(real[0].shapes) == {"t"} and real[0].shapes["t"].dtype == np.float32
    result = mean(real, (3, 1))
    expected = sum(
        w * s.arrays["t"].astype(np.float32) * s.arrays["t.scale"] for w, s in zip((0.75, 0.25), stored, strict=True)
    )
    np.testing.assert_allclose(whole(result, "t"), expected, rtol=1e-6)
    again = Int8Tables(result, ["t"])
    assert again.shapes["t"].dtype == np.int8 and again.shapes["t.scale"].shape == (9, 1)
    rows, scale = np.concatenate(list(runs(again, "t", 8))), np.concatenate(list(runs(again, "t.scale", 2)))
    np.testing.assert_array_equal(rows.reshape(9, 4), int8_rows(whole(result, "t"))[0])
    np.testing.assert_array_equal(scale.reshape(9, 1), int8_rows(whole(result, "t"))[1])


def test_layers_stored_apart_are_a_stack_where_another_input_has_one():
    stack = np.random.default_rng(0).standard_normal((3, 4, 2)).astype(np.float32)
    apart = Arrays(**{f"blocks.{i}.w": layer for i, layer in enumerate(stack * 3)})
    result = mean([Unpacked(apart, ["blocks.w"]), Unpacked(Arrays(**{"blocks.w": stack}), ["blocks.w"])], (1, 1))
    np.testing.assert_allclose(whole(result, "blocks.w", 5), stack * 2, rtol=1e-6)


def test_a_wrong_scale_is_refused_by_name():
    wrong = Arrays(t=np.zeros((3, 4), np.int8), **{"t.scale": np.zeros((2, 1), np.float32)})
    with pytest.raises(ValueError, match=r"file: tensor 't.scale' has shape \(2, 1\), expected \(3, 1\)"):
        Unpacked(wrong)
