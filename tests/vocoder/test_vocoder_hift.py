"""Properties of HiFT: padding, long audio, streaming of the source, gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.vocoder.hift import Hift, snake
from aqaa_jax.vocoder.source import cycles

run = jax.jit(Hift.__call__)
LENGTHS = np.array([6, 3, 5, 4])


@pytest.fixture(scope="module")
def batch(tiny):
    model, sines = tiny.hift(), tiny.HIFT.harmonics + 1
    model.f0_predictor.classifier.bias.set_value(jnp.array([150.0]))  # voiced
    mel, phase = tiny.array(4, 6, tiny.MELS), tiny.array(4, sines, seed=1)
    noise = tiny.array(4, 6 * model.hop, sines, seed=2)
    return model, (mel, phase, noise), np.asarray(run(model, mel, phase, noise, lengths_B=LENGTHS)[0])


@pytest.mark.parametrize("row", [0, 1])
def test_row_of_a_batch_is_the_row_alone(batch, row):
    model, (mel, phase, noise), wav = batch
    n, one = LENGTHS[row], slice(row, row + 1)
    samples = n * model.hop
    alone, _ = run(model, mel[one, :n], phase[one], noise[one, :samples])
    assert alone.shape == (1, samples)
    np.testing.assert_allclose(wav[row, :samples], alone[0], atol=2e-5)
    assert not wav[row, samples:].any()


def test_padding_content_changes_nothing(batch):
    model, (mel, phase, noise), wav = batch
    real = (np.arange(6) < LENGTHS[:, None])[..., None]
    dirty_noise = np.where(np.repeat(real, model.hop, axis=1), noise, 9.0)
    dirty, _ = run(model, np.where(real, mel, 40.0), phase, dirty_noise, lengths_B=LENGTHS)
    np.testing.assert_array_equal(dirty, wav)


def test_full_lengths_are_no_lengths(batch):
    model, (mel, phase, noise), _ = batch
    plain, _ = run(model, mel, phase, noise)
    full, _ = run(model, mel, phase, noise, lengths_B=np.full(4, 6))
    np.testing.assert_allclose(full, plain, atol=1e-5)


def test_waveform_is_limited_and_not_silent(tiny, batch):
    _, _, wav = batch
    assert np.abs(wav).max() <= tiny.HIFT.audio_limit
    assert np.abs(wav[0]).max() > 1e-3


def test_cached_source_replaces_the_start(tiny, batch):
    model, (mel, phase, noise), _ = batch
    _, source = run(model, mel, phase, noise)
    cache = tiny.array(4, 300, seed=5) * 0.1
    _, replaced = run(model, mel, phase, noise, cache_source_BW=cache)
    np.testing.assert_array_equal(replaced[:, :300], cache)
    np.testing.assert_array_equal(replaced[:, 300:], source[:, 300:])
    wav, _ = run(model, mel, phase, noise)
    same, _ = run(model, mel, phase, noise, cache_source_BW=source[:, :300])
    np.testing.assert_allclose(same, wav, atol=1e-5)


def test_first_phase_is_ignored(batch):
    model, (_, phase, noise), _ = batch
    f0 = np.full((4, 6), 150.0, np.float32)
    other = phase.copy()
    other[:, 0] += 1.0
    np.testing.assert_array_equal(model.source(f0, phase, noise), model.source(f0, other, noise))


def test_unvoiced_frames_are_noise_only(batch):
    model, (_, phase, noise), _ = batch
    f0 = np.zeros((4, 6), np.float32)
    np.testing.assert_array_equal(model.source(f0, phase, noise), model.source(f0, phase + 1.0, noise))
    assert not np.allclose(model.source(f0, phase, noise), model.source(f0, phase, noise * 0))


@pytest.mark.parametrize("wander", [0.0, 1.0])
def test_phase_stays_exact_over_long_audio(wander):
    rng = np.random.default_rng(0)
    f0 = (210.3 + wander * np.cumsum(rng.standard_normal(6000))).astype(np.float32)[None]  # 70 seconds
    exact = np.cumsum(np.repeat(f0.astype(np.float64), 256, axis=1) / 22050, axis=1)
    error = np.asarray(cycles(f0, 22050, 256), np.float64) - exact
    error -= np.round(error)
    assert np.abs(error).max() < 2e-6


def test_gradient_is_finite_and_reaches_every_weight(batch):
    model, (mel, phase, noise), _ = batch

    @jax.jit
    def gradient(model):
        def loss(model):
            wav, _ = model(mel, phase, noise, lengths_B=LENGTHS)
            return jnp.mean(jnp.square(wav - 0.1)) + jnp.mean(model.f0(mel))

        return jax.grad(loss)(model)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(model)):
        assert np.isfinite(leaf).all() and np.asarray(leaf).any(), path


def test_source_gives_no_gradient_to_f0(batch):
    model, (_, phase, noise), _ = batch
    slope = jax.grad(lambda f0: jnp.sum(model.source(f0, phase, noise)))(jnp.full((4, 6), 150.0))
    assert not np.asarray(slope).any()


def test_snake_is_the_sine_formula():
    x = np.linspace(-30, 30, 2001, dtype=np.float32)
    for alpha in (0.3, 1.0, 4.0):
        expected = x + np.sin(alpha * x.astype(np.float64)) ** 2 / alpha
        np.testing.assert_allclose(snake(x, np.float32(alpha)), expected, atol=2e-5)
        slope = jax.vmap(jax.grad(lambda v, a=alpha: snake(v, a)))(x)
        np.testing.assert_allclose(slope, 1 + np.sin(2 * alpha * x.astype(np.float64)), atol=2e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upsample_kernels": (16,)}, "upsample rates"),
        ({"resblock_kernels": (3,)}, "dilation"),
        ({"channels": 18}, "18"),
    ],
)
def test_wrong_config_is_named(tiny, change, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: Hift(dataclasses.replace(tiny.HIFT, **change), rngs=nnx.Rngs(0)))
