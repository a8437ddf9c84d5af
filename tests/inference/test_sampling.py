"""The sampling rules one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqaa_jax.config import SamplingConfig
from aqaa_jax.inference.sampling import NO_TOKEN, check_sampling, forbid_repetition, keep_top_k, keep_top_p, sample

LOGITS = jnp.log(jnp.asarray([[0.5, 0.25, 0.15, 0.1], [0.1, 0.2, 0.3, 0.4]]))
KEYS = jax.random.split(jax.random.key(0), 2)


def kept(logits):
    return np.isfinite(logits).tolist()


def draw(sampling, count=400, **options):
    keys = jax.random.split(jax.random.key(3), count * 2).reshape(count, 2)
    return np.asarray(jax.vmap(lambda k: sample(LOGITS, k, sampling, **options))(keys))


def test_greedy():
    np.testing.assert_array_equal(sample(LOGITS, KEYS, SamplingConfig(temperature=0.0)), [0, 3])


def test_top_k():
    assert kept(keep_top_k(LOGITS, 2)) == [[True, True, False, False], [False, False, True, True]]
    assert kept(keep_top_k(LOGITS, 9)) == [[True] * 4] * 2


@pytest.mark.parametrize(
    ("top_p", "first"),
    [(0.01, [True, False, False, False]), (0.6, [True, True, False, False]), (0.85, [True, True, True, False])],
)
def test_top_p(top_p, first):
    assert kept(keep_top_p(LOGITS, top_p))[0] == first


def test_draws_follow_the_distribution():
    drawn = draw(SamplingConfig(temperature=1.0, top_p=1.0))
    shares = np.bincount(drawn[:, 0], minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.15, 0.1], atol=0.08)
    assert set(draw(SamplingConfig(temperature=1.0, top_p=0.6))[:, 0]) == {0, 1}
    assert set(draw(SamplingConfig(temperature=1.0, top_p=1.0, top_k=1))[:, 1]) == {3}
    cold = draw(SamplingConfig(temperature=0.05, top_p=1.0))
    assert (cold[:, 0] == 0).mean() > 0.99


def test_every_row_has_its_own_key():
    one = sample(LOGITS, KEYS, SamplingConfig(temperature=1.0))
    other = sample(LOGITS, KEYS.at[1].set(jax.random.key(9)), SamplingConfig(temperature=1.0))
    assert one[0] == other[0]
    np.testing.assert_array_equal(one, sample(LOGITS, KEYS, SamplingConfig(temperature=1.0)))


def test_allowed_tokens():
    allowed = jnp.asarray([[False, False, True, True], [True, False, False, False]])
    np.testing.assert_array_equal(sample(LOGITS, KEYS, SamplingConfig(temperature=0.0), allowed_BV=allowed), [2, 0])
    assert set(draw(SamplingConfig(temperature=1.0), allowed_BV=allowed)[:, 0]) <= {2, 3}


def test_repetition_rule():
    recent = jnp.asarray([[1, 0, 2, 0], [0, 1, 2, 3]])
    out = forbid_repetition(LOGITS, recent, 0.25)  # 2 of 4 and 1 of 4
    assert kept(out) == [[False, True, True, True], [True] * 4]
    assert kept(forbid_repetition(LOGITS, recent, 0.2)) == [[False, True, True, True], [True, True, True, False]]
    assert kept(forbid_repetition(LOGITS, recent.at[0, 0].set(NO_TOKEN), 0.25)) == [[True] * 4] * 2
    window = jnp.asarray([[5, 6, 7, 8, 9, 10, 11, 12, 13, 2]] * 2)  # 1 of 10 does not exceed 0.1
    assert kept(forbid_repetition(LOGITS, window, 0.1)) == [[True] * 4] * 2


def test_repetition_rule_yields_to_the_only_allowed_token():
    sampling = SamplingConfig(temperature=0.0, repetition_window=2)
    only = jnp.asarray([[True, False, False, False]] * 2)
    out = sample(LOGITS, KEYS, sampling, recent_BW=jnp.zeros((2, 2), jnp.int32), allowed_BV=only)
    np.testing.assert_array_equal(out, [0, 0])


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"max_new_tokens": 0}]
)
def test_senseless_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        check_sampling(SamplingConfig(**wrong))
