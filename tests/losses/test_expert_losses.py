"""Balance and z losses by hand, and that they add up over batches."""

import jax
import jax.numpy as jnp
import numpy as np

from aqaa_jax.config import ExpertsConfig
from aqaa_jax.losses.experts import expert_terms, load_balance, router_z
from aqaa_jax.nn.router import route

CONFIG = ExpertsConfig(experts=4, top_k=2)


def stats_of(logits):
    return jax.tree.map(lambda x: x[None], route(logits, None, CONFIG).stats)


def test_balance_is_one_when_even_and_the_number_of_experts_when_one_gets_all():
    even, ones = jnp.full(4, 0.25), jnp.asarray([1.0, 0, 0, 0])
    for share, p, expected in ((even, even, 1), (even, ones, 1), (ones, even, 1), (ones, ones, 4)):
        total, count = load_balance(share, 7 * p, jnp.asarray(7.0))
        np.testing.assert_allclose(total / count, expected, rtol=1e-6)


def test_terms_by_hand():
    logits = jnp.log(jnp.asarray([[[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.6, 0.2, 0.1, 0.1]]])) + 2.0
    terms = expert_terms(stats_of(logits), jnp.asarray(3.0))
    means = {name: np.asarray(total / count) for name, (total, count) in terms.items()}
    share, p = np.array([2, 2, 1, 1]) / 6, np.array([1.1, 0.7, 0.6, 0.6]) / 3
    np.testing.assert_allclose(means["expert_balance"], 4 * np.sum(share * p), rtol=1e-6)
    np.testing.assert_allclose(means["expert_z"], 4.0, rtol=1e-6)
    np.testing.assert_allclose(means["expert_load"], [[2 / 3, 2 / 3, 1 / 3, 1 / 3]], rtol=1e-6)
    np.testing.assert_allclose(means["expert_peak"], 4 / 3, rtol=1e-6)
    assert means["expert_dropped"] == means["expert_idle"] == 0
    rows = np.exp(np.asarray(logits[0]) - 2)
    np.testing.assert_allclose(means["expert_entropy"], -np.sum(rows * np.log(rows)) / 3, rtol=1e-6)


def test_gradient_moves_probability_from_busy_experts_to_idle_ones():
    logits = jnp.asarray([[[2.0, 1.0, 0.0, -1.0]] * 3])
    tokens = jnp.asarray(3.0)

    def balance(logits):
        stats = stats_of(logits)
        return load_balance(stats.share_E, stats.probability_E, tokens)[0]

    grad = jax.grad(balance)(logits)[0]
    assert (grad[:, :1] > 0).all() and (grad[:, 2:] < 0).all()
    z = jax.grad(lambda x: router_z(stats_of(x).z, tokens)[0])(logits)
    assert (z > 0).all()  # logits shrink
