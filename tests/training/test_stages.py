"""The stages: what their targets and losses must be whatever the model learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqaa_jax.config import EstimatorConfig, FlowConfig, FlowEncoderConfig, HiftConfig, MelConfig, SemanticConfig
from aqaa_jax.data.speech import Labelled, octaves
from aqaa_jax.training.augment import augment, warp_factors, warp_mels
from aqaa_jax.training.stages.flow import FlowStage, TokenMel
from aqaa_jax.training.stages.hift import HiftStage, MelWav
from aqaa_jax.training.stages.semantic import LOWEST, STEPS_PER_OCTAVE, SemanticStage

SEMANTIC = SemanticConfig(embed=32, heads=2, mlp=64, layers=1, codes=16)


@pytest.mark.parametrize("hertz", [100.0, 200.0, 300.0])
def test_octaves_of_a_buzz(hertz):
    time = np.arange(16000) / 16000
    wav = np.sum([np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 8)], axis=0) * 0.2
    tones = octaves(np.concatenate([wav, np.zeros(8000)]).astype(np.float32))
    assert tones.shape == (37,) and tones.dtype == np.float16
    np.testing.assert_allclose(tones[2:22].astype(np.float32), np.log2(hertz / 200.0), atol=0.03)
    assert np.isnan(tones[28:]).all()


def speech(seed: int, seconds: float = 1.2) -> Labelled:
    rng = np.random.default_rng(seed)
    vectors = int(seconds * 25)
    pitch = np.where(np.arange(vectors) % 3 == 0, np.nan, 0.3).astype(np.float16)
    mel = rng.normal(size=(vectors * 4, SEMANTIC.num_mels)).astype(np.float16)
    return Labelled(mel, rng.integers(0, 5, vectors * 2).astype(np.int16), np.array([1, 2, 3], np.int16), pitch)


@pytest.fixture(scope="module")
def semantic() -> SemanticStage:
    train = [speech(i) for i in range(4)]
    return SemanticStage(SEMANTIC, 6, train, train, rows=2, length=36, seed=0, steps=10)


def test_pitch_counts_voiced_real_vectors_only(semantic):
    model, batch = semantic.init(jax.random.key(0)), semantic.batch(0)
    loss = jax.jit(semantic.loss)
    terms = loss(model, batch, jax.random.key(1))
    assert float(terms["pitch"][1]) == 2 * np.sum(np.arange(30) % 3 != 0)
    unvoiced = {**batch, "pitch": np.full_like(batch["pitch"], np.nan)}
    assert [float(x) for x in loss(model, unvoiced, jax.random.key(1))["pitch"]] == [0.0, 0.0]


def test_pitch_target_moves_with_the_warped_mel(semantic):
    """A spectrum read at ``m * factor`` sounds lower by ``log2(factor)``: the target has to follow."""
    model, batch = semantic.init(jax.random.key(0)), semantic.batch(0)
    model.pitch.kernel.set_value(jnp.zeros_like(model.pitch.kernel[...]))
    loss = jax.jit(semantic.loss)
    for seed in range(3):
        key = jax.random.key(seed)
        factor = np.asarray(warp_factors(jax.random.split(key)[0], 2, 0.14))
        wanted = np.floor((0.3 - np.log2(factor) - LOWEST) * STEPS_PER_OCTAVE + 1e-3).astype(int)
        bias = np.zeros(model.pitch.bias[...].shape, np.float32)
        bias[wanted[0]], bias[wanted[1]] = 30.0, 30.0  # certain of the two right steps
        model.pitch.bias.set_value(jnp.asarray(bias))
        value, count = loss(model, batch, key)["pitch"]
        assert float(value / count) < 0.7  # log 2 if the rows differ, 0 if they agree; about 30 elsewhere


def test_augment_without_warp_leaves_the_mel_axis():
    x = jnp.ones((2, 6, 8)) * jnp.arange(8.0)
    still = augment(x, jax.random.key(0), warp=0.0, tilt=0.0, frequency_mask=0.0, time_mask=0, noise=0.0)
    np.testing.assert_array_equal(still, x)
    np.testing.assert_allclose(warp_mels(x, jnp.array([0.5, 1.0]))[0, 0], np.arange(8) / 2, rtol=1e-6)


def test_training_noise_scales_the_path_of_the_flow():
    estimator = EstimatorConfig(channels=(16, 16), heads=2, head_dim=8, blocks=1, mid_blocks=1)
    encoder = FlowEncoderConfig(embed=16, heads=2, mlp=32, layers=1)
    mel = MelConfig(num_mels=8)
    config = FlowConfig(
        vocab=64, encoder=encoder, estimator=estimator, mel=mel, condition_dropout=0.0, prompt_probability=0.0
    )
    rng = np.random.default_rng(0)
    items = [TokenMel(rng.integers(0, 64, 20), rng.normal(size=(40, 8)).astype(np.float32)) for _ in range(4)]

    def losses(scale: float) -> tuple[np.ndarray, float]:
        chosen = dataclasses.replace(config, training_noise=scale)
        stage = FlowStage(chosen, items, items, rows=2, length=40, seed=0)
        model, batch = stage.init(jax.random.key(0)), stage.batch(0)
        target = model.normalise(batch["mel"])
        loss = jax.jit(stage.loss)
        terms = [loss(model, batch, jax.random.key(k))["velocity"] for k in range(2)]
        return np.array([float(v / n) for v, n in terms]), float(jnp.mean(target**2))

    calm, power = losses(0.0)
    wild, _ = losses(3.0)
    assert wild.mean() > 4 * power > 0  # the velocity holds nine times the variance of unit noise
    assert calm.mean() < 4 * power


@pytest.mark.long
def test_vocoder_stages_give_samples_beside_the_truth():
    estimator = EstimatorConfig(channels=(16, 16), heads=2, head_dim=8, blocks=1, mid_blocks=1)
    config = FlowConfig(
        vocab=64,
        encoder=FlowEncoderConfig(embed=16, heads=2, mlp=32, layers=1),
        estimator=estimator,
        mel=MelConfig(num_mels=8),
        temperature=0.0,
    )
    rng = np.random.default_rng(0)
    items = [TokenMel(rng.integers(0, 64, 20), rng.normal(size=(40, 8)).astype(np.float32)) for _ in range(2)]
    flow = FlowStage(config, items, items, rows=2, length=40, seed=0)
    model = flow.init(jax.random.key(0))
    made = flow.samples(model)
    assert made["mel"].shape == made["mel_true"].shape == (int(flow.batch(0)["mel_lengths"][0]), 8)
    error = flow.evaluate(model)["held_out_mel_l1"]  # of two rows; the sample is the first of them
    assert np.isfinite(error) and np.abs(made["mel"] - made["mel_true"]).mean() < 3 * error

    mel = MelConfig()
    wav = (0.1 * rng.normal(size=12 * mel.hop)).astype(np.float32)
    item = MelWav(rng.normal(size=(12, mel.num_mels)).astype(np.float32), np.full(12, 150.0, np.float32), wav)
    hift = HiftStage(HiftConfig(channels=32, f0_channels=16), mel, [item], [item], rows=1, length=8, seed=0)
    sounds = hift.samples(hift.init(jax.random.key(0)))
    assert sounds["wav"].wav_W.shape == sounds["wav_true"].wav_W.shape == (8 * mel.hop,) and sounds["wav"].rate == 22050
    np.testing.assert_array_equal(sounds["wav_true"].wav_W, wav[: 8 * mel.hop])
