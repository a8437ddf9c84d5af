"""The flow against the published code: every array of ``golden/flow_vocoder``."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from aqaa_jax.checkpoint.tree import named_weights, with_weights
from aqaa_jax.convert.flow import config_from_upstream, from_upstream, to_upstream
from aqaa_jax.dsp.mel import vocoder_mel
from aqaa_jax.vocoder.encoder import FlowEncoder
from aqaa_jax.vocoder.flow import Condition, Flow, Prompt, mel_frames, time_grid

pytestmark = pytest.mark.parity
FOLDER = "flow_vocoder"


@pytest.fixture(scope="module")
def model(golden):
    config = config_from_upstream(json.loads(golden(f"{FOLDER}/config.json").read_text()))
    state = load_file(golden(f"{FOLDER}/flow.safetensors"))
    abstract = jax.eval_shape(lambda: Flow(config, rngs=nnx.Rngs(0)))
    return with_weights(abstract, from_upstream(state, config))


def last(array):
    """Channels last."""
    return np.moveaxis(array, 1, 2)


def close(ours, golden, tolerance):
    np.testing.assert_allclose(np.asarray(ours), golden, atol=tolerance, rtol=0)


def inputs(g):
    """Tokens, both lengths, speaker and prompt of a golden ``inference`` call."""
    tokens = np.concatenate([g["prompt_token"], g["token"]], axis=1).astype(np.int32)
    mel = g["prompt_feat"].astype(np.float32)
    prompt = Prompt(np.array([g["prompt_token"].shape[1]]), mel, np.array([mel.shape[1]]))
    return tokens, np.array([tokens.shape[1]]), np.array([g["noise"].shape[2]]), g["embedding"], prompt


def test_names_come_back_exactly(golden, model):
    state = load_file(golden(f"{FOLDER}/flow.safetensors"))
    back = to_upstream(named_weights(model), model.config)
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("name", ["prompt", "noprompt"])
def test_condition(golden, model, name):
    g = golden(f"{FOLDER}/{name}.npz")
    tokens, token_lengths, mel_lengths, speaker, prompt = inputs(g)
    assert mel_frames(g["token"].shape[1], model.config) == g["mel"].shape[2]
    close(model.embedding(tokens), g["token_embed"], 1e-6)
    close(jax.jit(FlowEncoder.__call__)(model.encoder, g["token_embed"]), g["encoder_out"], 2e-5)
    close(jax.jit(Flow.hidden)(model, tokens), g["h_proj"], 2e-5)
    frames = g["noise"].shape[2]
    got = jax.jit(Flow.condition, static_argnames="frames")(
        model, tokens, token_lengths, mel_lengths, speaker, prompt, frames=frames
    )
    close(got.mu_BTM, last(g["mu"]), 1e-4)
    close(got.spks_BM, g["spks"], 1e-5)
    close(got.cond_BTM, last(g["cond"]), 0)
    assert np.all(np.asarray(got.mask_BT) == 1)


@pytest.mark.parametrize("name", ["prompt", "noprompt"])
def test_steps(golden, model, name):
    """The time grid, the states on the way and the raw velocities of the first and last step."""
    g = golden(f"{FOLDER}/{name}.npz")
    grid = time_grid(len(g["t_span"]) - 1)
    close(grid, g["t_span"], 2e-7)
    close(grid[:-1], g["t_steps"], 1e-6)
    if "t_span_bf16" in g:
        close(grid, g["t_span_bf16"], 1e-2)
    mask = np.ones((1, g["mu"].shape[2]), np.float32)
    condition = Condition(last(g["mu"]), g["spks"], last(g["cond"]), mask)
    guided = jax.jit(Flow.guided_velocity, static_argnames="guidance")
    x, states = last(g["noise"]), []
    for t, dt in zip(grid[:-1], np.diff(grid), strict=True):
        states.append(x)
        x = x + dt * guided(model, x, np.full(1, t, np.float32), condition, guidance=model.config.guidance)
    for index, state in zip(g["x_steps_index"], g["x_steps"], strict=True):
        close(states[index][0], state.T, 2e-4)
    zero = [np.concatenate([a, np.zeros_like(a)]) for a in (last(g["mu"]), g["spks"], last(g["cond"]))]
    velocity = jax.jit(Flow.velocity)
    for step, key in ((0, "v_first_step"), (len(grid) - 2, "v_last_step")):
        both = np.concatenate([np.asarray(states[step])] * 2)
        t = np.full(2, grid[step], np.float32)
        close(velocity(model, both, None, zero[0], t, zero[1], zero[2]), last(g[key]), 2e-4)


@pytest.mark.parametrize("name", ["prompt", "noprompt"])
def test_mel(golden, model, name):
    g = golden(f"{FOLDER}/{name}.npz")
    tokens, token_lengths, mel_lengths, speaker, prompt = inputs(g)
    sample = jax.jit(Flow.sample)
    mel = np.asarray(sample(model, tokens, token_lengths, mel_lengths, speaker, last(g["noise"]), prompt))
    mel = mel[:, g["prompt_feat"].shape[1] :]
    close(mel, last(g["mel"]), 5e-4)
    # informational: the untouched bfloat16 path
    assert np.sqrt(np.mean(np.square(mel - last(g["mel_bf16_upstream"])))) < 0.1


def test_prompt_mel_is_our_mel(golden, model):
    g = golden(f"{FOLDER}/prompt.npz")
    mel = vocoder_mel(g["prompt_wave_22k"], model.config.mel)
    frames = g["prompt_feat"].shape[1]
    close(mel[:frames], g["prompt_feat"][0], 1e-3)


def test_estimator_with_published_masking(golden, model):
    g = golden(f"{FOLDER}/estimator.npz")
    arguments = last(g["x"]), g["mask"][:, 0], last(g["mu"]), g["t"], g["spks"], last(g["cond"])
    velocity = jax.jit(Flow.velocity, static_argnames="padding_bug")
    close(velocity(model, *arguments, padding_bug=True), last(g["out"]), 2e-4)
    ours = np.asarray(velocity(model, *arguments))
    full = g["mask"][:, 0].min(axis=1) == 1  # rows without padding do not depend on the flag
    close(ours[full], last(g["out"])[full], 2e-4)
    assert full.any()
    for row in np.flatnonzero(~full):  # a padded row alone, cut to its length, is what we compute in the batch
        n = int(g["mask"][row].sum())
        alone = [a[row : row + 1, :n] if a.ndim == 3 else a[row : row + 1] for a in arguments]
        alone[1] = None
        close(ours[row, :n], velocity(model, *alone)[0], 1e-4)
        assert np.abs(ours[row] - last(g["out"])[row]).max() > 1e-3


def test_solver(golden, model):
    g = golden(f"{FOLDER}/ode.npz")
    condition = Condition(last(g["mu"]), g["spks"], last(g["cond"]), np.ones((1, g["mu"].shape[2]), np.float32))
    solve = jax.jit(Flow.solve, static_argnames=("steps", "guidance"))
    close(solve(model, condition, last(g["noise"]), steps=int(g["n_timesteps"])), last(g["out"]), 5e-4)
