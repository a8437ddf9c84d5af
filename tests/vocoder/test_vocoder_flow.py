"""Properties of the flow: rows do not touch one another, gradients are finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.config import FlowConfig
from aqaa_jax.vocoder.encoder import distance_table
from aqaa_jax.vocoder.flow import Flow, Prompt, mel_frames, time_grid
from aqaa_jax.vocoder.regulator import interpolate
from aqaa_jax.vocoder.unet import time_embedding

sample = jax.jit(Flow.sample)


@pytest.fixture(scope="module")
def batch(tiny):
    model, inputs = tiny.flow(), tiny.flow_inputs()
    return model, inputs, np.asarray(sample(model, *inputs))


@pytest.mark.parametrize("row", [1, 2])
def test_row_of_a_batch_is_the_row_alone(batch, row):
    model, (tokens, token_lengths, mel_lengths, speaker, noise, prompt), mel = batch
    n, frames, front = token_lengths[row], mel_lengths[row], prompt.mel_lengths_B[row]
    one = slice(row, row + 1)
    alone = sample(
        model, tokens[one, :n], token_lengths[one], mel_lengths[one], speaker[one], noise[one, :frames],
        Prompt(prompt.token_lengths_B[one], prompt.mel_BTM[one, :front], prompt.mel_lengths_B[one]),
    )  # fmt: skip
    np.testing.assert_allclose(mel[row, :frames], alone[0], atol=2e-5)
    assert not mel[row, frames:].any()


def test_padding_content_changes_nothing(batch):
    model, (tokens, token_lengths, mel_lengths, speaker, noise, prompt), mel = batch
    real_tokens = np.arange(tokens.shape[1]) < token_lengths[:, None]
    real_noise = (np.arange(noise.shape[1]) < mel_lengths[:, None])[..., None]
    real_prompt = (np.arange(prompt.mel_BTM.shape[1]) < prompt.mel_lengths_B[:, None])[..., None]
    dirty = sample(
        model, np.where(real_tokens, tokens, 17), token_lengths, mel_lengths, speaker,
        np.where(real_noise, noise, 50.0), prompt._replace(mel_BTM=np.where(real_prompt, prompt.mel_BTM, -30.0)),
    )  # fmt: skip
    np.testing.assert_array_equal(dirty, mel)


def test_published_masking_leaks(batch):
    """What ``padding_bug`` is for: the padded row changes, the full row does not."""
    model, (_, _, mel_lengths, _, noise, _), _ = batch
    mask = (np.arange(noise.shape[1]) < mel_lengths[:, None]).astype(np.float32)
    spks, t = noise[:, 0], np.full(4, 0.3, np.float32)
    arguments = noise, mask, noise, t, spks, noise
    good, bad = (model.velocity(*arguments, padding_bug=bug) for bug in (False, True))
    np.testing.assert_allclose(good[0], bad[0], atol=1e-5)
    assert np.abs(good[1] - bad[1]).max() > 1e-3


def test_no_prompt_is_an_empty_prompt(batch):
    model, (tokens, token_lengths, mel_lengths, speaker, _, prompt), _ = batch
    empty = Prompt(np.zeros(4, np.int32), prompt.mel_BTM, np.zeros(4, np.int32))
    condition = jax.jit(Flow.condition, static_argnames="frames")
    one = condition(model, tokens, token_lengths, mel_lengths, speaker, empty, frames=23)
    two = condition(model, tokens, token_lengths, mel_lengths, speaker, frames=23)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert not np.asarray(two.cond_BTM).any()


def test_prompt_longer_than_the_row_is_named(batch):
    model, (tokens, token_lengths, mel_lengths, speaker, _, prompt), _ = batch
    with pytest.raises(ValueError, match="prompt mel has 7 frames"):
        model.condition(tokens, token_lengths, mel_lengths, speaker, prompt, frames=6)


def test_gradient_is_finite_and_reaches_every_weight(batch):
    model, (tokens, token_lengths, mel_lengths, speaker, noise, prompt), _ = batch

    @jax.jit
    def gradient(model):
        def loss(model):
            c = model.condition(tokens, token_lengths, mel_lengths, speaker, prompt, frames=noise.shape[1])
            v = model.velocity(noise, c.mask_BT, c.mu_BTM, jnp.full(4, 0.4), c.spks_BM, c.cond_BTM)
            return jnp.mean(jnp.square(v - noise))

        return jax.grad(loss)(model)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(model)):
        assert np.isfinite(leaf).all() and np.asarray(leaf).any(), path


def test_guidance_zero_is_the_conditional_velocity(batch):
    model, (tokens, token_lengths, mel_lengths, speaker, noise, prompt), _ = batch
    c = model.condition(tokens, token_lengths, mel_lengths, speaker, prompt, frames=noise.shape[1])
    t = np.full(4, 0.4, np.float32)
    plain = model.guided_velocity(noise, t, c, 0.0)
    near = model.guided_velocity(noise, t, c, 1e-6)
    np.testing.assert_allclose(plain, near, atol=1e-4)


def test_normalised_mel_comes_back(tiny):
    config = dataclasses.replace(tiny.FLOW, mel_mean=-5.0, mel_std=2.0)
    model = Flow(config, rngs=nnx.Rngs(0))
    mel = tiny.array(1, 3, tiny.MELS)
    np.testing.assert_allclose(model.denormalise(model.normalise(mel)), mel, atol=1e-6)
    assert float(model.normalise(jnp.full((1, 1, 1), -5.0))[0, 0, 0]) == 0.0


def test_interpolation_is_linear_between_half_shifted_corners():
    h = np.arange(10, dtype=np.float32)[None, :, None]
    frames = np.arange(8)[None]
    got = interpolate(h, np.array([2]), np.array([4]), frames, np.array([8]))[0, :, 0]
    expected = 2 + np.clip((np.arange(8) + 0.5) * 0.5 - 0.5, 0, 3)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_rates_and_grid():
    config = FlowConfig()
    assert mel_frames(50, config) == 103
    grid = time_grid(10)
    assert grid[0] == 0 and abs(grid[-1] - 1) < 1e-6 and np.all(np.diff(grid) > 0)
    assert np.diff(grid)[0] < np.diff(grid)[-1]
    with pytest.raises(ValueError, match="0"):
        time_grid(0)


def test_tables():
    table = distance_table(4, 6)
    assert table.shape == (7, 6)
    np.testing.assert_allclose(table[3], [0, 1, 0, 1, 0, 1], atol=1e-7)  # distance 0
    np.testing.assert_allclose(table[0, 0], np.sin(3), atol=1e-6)
    embedding = time_embedding(jnp.array([0.5]), 8)[0]
    np.testing.assert_allclose(embedding[0], np.sin(500.0), atol=1e-4)
    np.testing.assert_allclose(embedding[7], np.cos(500.0 * 1e-4), atol=1e-6)
