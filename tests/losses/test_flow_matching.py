"""The flow-matching path and its loss."""

import jax
import jax.numpy as jnp
import numpy as np

from aqaa_jax.losses.flow_matching import flow_times, keep_condition, path, prompt_mask, velocity_loss, warp


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_path_runs_from_noise_to_target_at_its_velocity():
    noise, target, sigma = array(3, 5, 2), array(3, 5, 2, seed=1), 1e-2
    start, velocity = path(noise, target, jnp.zeros(3), sigma)
    end, _ = path(noise, target, jnp.ones(3), sigma)
    np.testing.assert_allclose(start, noise, atol=1e-6)
    np.testing.assert_allclose(end, target + sigma * noise, atol=1e-6)
    middle, _ = path(noise, target, jnp.full(3, 0.5), sigma)
    np.testing.assert_allclose(middle, start + 0.5 * velocity, atol=1e-6)


def test_exact_prediction_has_no_loss_and_padding_does_not_count():
    _, velocity = path(array(2, 6, 3), array(2, 6, 3, seed=1), jnp.full(2, 0.3), 1e-6)
    mask = (np.arange(6) < np.array([[6], [4]])).astype(np.float32)
    predicted = jnp.where(mask[..., None] > 0, velocity, jnp.inf)
    value, count = velocity_loss(predicted, velocity, mask)
    assert float(value) == 0.0 and float(count) == 10 * 3
    slope = jax.grad(lambda p: velocity_loss(p, velocity, mask)[0])(velocity + 1.0)
    assert not np.asarray(slope)[1, 4:].any() and np.asarray(slope)[1, :4].all()
    assert np.isfinite(jax.grad(lambda p: velocity_loss(p, velocity, mask * 0)[0])(velocity)).all()


def test_loss_is_the_mean_square():
    predicted, velocity, mask = array(2, 4, 3), array(2, 4, 3, seed=1), np.ones((2, 4), np.float32)
    value, count = velocity_loss(predicted, velocity, mask)
    np.testing.assert_allclose(value / count, np.mean((predicted - velocity) ** 2), rtol=1e-5)


def test_times_are_warped_uniforms():
    t = np.asarray(flow_times(jax.random.key(0), 4000))
    assert t.min() >= 0 and t.max() < 1
    assert abs(t.mean() - (1 - 2 / np.pi)) < 0.02
    np.testing.assert_allclose(warp(jnp.array([0.0, 0.5, 1.0])), [0, 1 - np.sqrt(0.5), 1], atol=1e-6)


def test_condition_dropout_rate():
    keep = np.asarray(keep_condition(jax.random.key(0), 4000, 0.2))
    assert set(keep) == {0.0, 1.0} and abs(keep.mean() - 0.8) < 0.03
    assert keep_condition(jax.random.key(0), 50, 0.0).all()
    assert not keep_condition(jax.random.key(0), 50, 1.0).any()


def test_prompt_is_a_short_prefix_of_half_of_the_rows():
    lengths = np.full(4000, 40)
    mask = np.asarray(prompt_mask(jax.random.key(0), lengths, 50, probability=0.5, fraction=0.3))
    shown = mask.sum(axis=1)
    np.testing.assert_array_equal(mask, np.arange(50) < shown[:, None])
    assert shown.max() == 12
    assert abs((shown > 0).mean() - 0.5 * 12 / 13) < 0.03
    assert not prompt_mask(jax.random.key(0), np.array([3, 0]), 5, probability=1.0, fraction=0.3).any()
