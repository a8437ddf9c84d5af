"""HiFT and the whole vocoder against the published code: every array of ``golden/hift``."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from aqaa_jax.checkpoint.tree import named_weights, with_weights
from aqaa_jax.config import MelConfig
from aqaa_jax.convert import flow as flow_convert
from aqaa_jax.convert import hift as hift_convert
from aqaa_jax.dsp.mel import vocoder_mel
from aqaa_jax.losses.waveform import log_mel
from aqaa_jax.vocoder.flow import Flow, Prompt
from aqaa_jax.vocoder.hift import MAX_MAGNITUDE, Hift

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def model(golden):
    config = hift_convert.config_from_upstream(json.loads(golden("hift/config.json").read_text()))
    state = load_file(golden("hift/hift.safetensors"))
    abstract = jax.eval_shape(lambda: Hift(config, rngs=nnx.Rngs(0)))
    return with_weights(abstract, hift_convert.from_upstream(state, config))


@pytest.fixture(scope="module")
def io(golden):
    return golden("hift/io.npz")


def last(array):
    """Channels last."""
    return np.moveaxis(array, 1, 2)


def close(ours, golden, tolerance):
    np.testing.assert_allclose(np.asarray(ours), golden, atol=tolerance, rtol=0)


def test_upstream_state_computes_the_same(golden, model):
    state = load_file(golden("hift/hift.safetensors"))
    back = hift_convert.to_upstream(named_weights(model), model.config)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}
    again = hift_convert.from_upstream(back, model.config)
    for name, value in named_weights(model).items():
        np.testing.assert_allclose(again[name], value, rtol=1e-6, atol=1e-8)


def test_f0(model, io):
    close(jax.jit(Hift.f0)(model, last(io["mel"])), io["f0"], 2e-3)


def test_source(model, io):
    source = jax.jit(Hift.source)(model, io["f0"], io["phase_vec"][..., 0], last(io["sine_noise"]))
    close(source, io["source"][:, 0], 2e-3)
    close(source, io["source_fp64"][:, 0], 5e-4)


def test_spectra(model, io):
    source = io["source"][:, 0]
    close(jax.jit(Hift.source_spectrum)(model, source), last(io["s_stft"]), 1e-5)
    magnitude, angle = jax.jit(Hift.spectrum)(model, last(io["mel"]), source)
    clipped = np.minimum(last(io["magnitude"]), MAX_MAGNITUDE)  # the golden array is the one before the clip
    np.testing.assert_allclose(np.asarray(magnitude), clipped, rtol=1e-4, atol=1e-4)
    close(angle, last(io["phase"]), 1e-4)


def test_waveform(model, io):
    close(jax.jit(Hift.decode)(model, last(io["mel"]), io["source"][:, 0]), io["waveform"], 1e-4)


def test_chain(model, io):
    arguments = last(io["mel"]), io["phase_vec"][..., 0], last(io["sine_noise"])
    wav, source = jax.jit(Hift.__call__)(model, *arguments)
    close(source, io["source"][:, 0], 2e-3)
    close(wav, io["waveform"], 2e-2)
    cache = io["cache_source"][:, 0]
    wav, source = jax.jit(Hift.__call__)(model, *arguments, cache_source_BW=cache)
    close(source[:, : cache.shape[1]], cache, 0)
    close(wav, io["waveform_cached_source"], 2e-2)
    given = np.concatenate([cache, io["source"][:, 0, cache.shape[1] :]], axis=1)
    close(jax.jit(Hift.decode)(model, last(io["mel"]), given), io["waveform_cached_source"], 1e-4)


def test_mel_front_end(golden):
    g = golden("hift/mel_frontend.npz")
    close(vocoder_mel(g["wave"], MelConfig()), g["mel"].T, 1e-3)
    close(log_mel(g["wave"][None], MelConfig())[0], g["mel"].T, 1e-3)


def test_tokens_to_waveform(golden, model):
    """The whole vocoder, with a voice prompt."""
    g = golden("hift/token_to_wav.npz")
    config = flow_convert.config_from_upstream(json.loads(golden("flow_vocoder/config.json").read_text()))
    weights = flow_convert.from_upstream(load_file(golden("flow_vocoder/flow.safetensors")), config)
    flow = with_weights(jax.eval_shape(lambda: Flow(config, rngs=nnx.Rngs(0))), weights)
    tokens = np.concatenate([g["prompt_token"], g["token"]], axis=1).astype(np.int32)
    front = g["prompt_feat"].shape[1]
    prompt = Prompt(np.array([g["prompt_token"].shape[1]]), g["prompt_feat"], np.array([front]))
    lengths = np.array([tokens.shape[1]]), np.array([g["flow_noise"].shape[2]])
    mel = jax.jit(Flow.sample)(flow, tokens, *lengths, g["embedding"], last(g["flow_noise"]), prompt)[:, front:]
    close(mel, last(g["mel"]), 5e-4)
    wav, source = jax.jit(Hift.__call__)(model, mel, g["phase_vec"][..., 0], last(g["sine_noise"]))
    close(source, g["source"][:, 0], 1e-2)
    close(wav, g["waveform"], 2e-2)
    close(jax.jit(Hift.decode)(model, mel, g["source"][:, 0]), g["waveform"], 2e-3)
