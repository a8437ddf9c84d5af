"""The semantic tokenizer against the reference data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from aqaa_jax.checkpoint.tree import named_weights, with_weights
from aqaa_jax.codec.quantize import l2_normalise, nearest
from aqaa_jax.codec.s3 import count_vectors
from aqaa_jax.codec.tokenizer import SemanticTokenizer
from aqaa_jax.convert import s3
from aqaa_jax.dsp.mel import whisper_log_mel

pytestmark = pytest.mark.parity
FOLDER = "s3_semantic/"
WAVES = ["chirp", "speech"]
codes_of = jax.jit(lambda model, mel, lengths: model(mel, lengths))
encode = jax.jit(lambda model, mel, lengths: model.encoder(mel, lengths))


@pytest.fixture(scope="module")
def model(golden):
    config = s3.config_from_upstream(json.loads(golden(FOLDER + "config.json").read_text()))
    weights = s3.from_upstream(load_file(golden(FOLDER + "model.safetensors")), config)
    return with_weights(jax.eval_shape(lambda: SemanticTokenizer(config, rngs=nnx.Rngs(0))), weights)


def check_codes(codes, expected, margins):
    sure = margins > 1e-3
    assert np.array_equal(codes[sure], expected[sure])
    assert np.mean(codes == expected) >= 0.99


def test_conversion_is_exact_both_ways(golden, model):
    state = load_file(golden(FOLDER + "model.safetensors"))
    back = s3.to_upstream(named_weights(model), model.config)
    assert set(back) == set(state)
    for name, value in state.items():
        close = np.abs(back[name] - value).max() < 2e-4 if "positional" in name else np.array_equal(back[name], value)
        assert close, name


def test_conversion_names_what_is_wrong(golden, model):
    state = load_file(golden(FOLDER + "model.safetensors"))
    name = "encoder.blocks.1.mlp.2.weight"
    with pytest.raises(ValueError, match=f"{name}' is missing"):
        s3.from_upstream({k: v for k, v in state.items() if k != name}, model.config)
    with pytest.raises(ValueError, match="unexpected published tensor 'extra'"):
        s3.from_upstream({**state, "extra": np.zeros(1)}, model.config)
    shifted = {**state, "encoder.positional_embedding": state["encoder.positional_embedding"] + 1.0}
    with pytest.raises(ValueError, match="differs from the usual sinusoids by 1"):
        s3.from_upstream(shifted, model.config)
    with pytest.raises(ValueError, match="speech_tokenizer_v1'"):
        s3.config_from_upstream({"name": "speech_tokenizer_v1"})


@pytest.mark.parametrize("wave", WAVES)
def test_log_mel(golden, wave):
    mel_TM = whisper_log_mel(golden("audio/waveforms.npz")[wave])
    expected = golden(FOLDER + f"{wave}.npz")["log_mel"].T
    assert mel_TM.shape == expected.shape
    assert np.abs(mel_TM - expected).max() < 2e-4


@pytest.mark.parametrize("wave", WAVES)
def test_encoder_codes_and_margins(golden, model, wave):
    data = golden(FOLDER + f"{wave}.npz")
    mel_BTM = jnp.asarray(data["log_mel"].T[None])
    out_TD = np.asarray(encode(model, mel_BTM, jnp.array([mel_BTM.shape[1]])))[0]
    assert out_TD.shape == data["encoder_out"].shape
    assert np.abs(out_TD - data["encoder_out"]).max() < 1e-4
    codes, distances = nearest(l2_normalise(jnp.asarray(data["encoder_out"])), model.codebook.table[...])
    check_codes(np.asarray(codes), data["codes"], data["margins"])
    two = np.sort(np.asarray(distances), axis=-1)[:, :2]
    assert np.abs(two[:, 1] - two[:, 0] - data["margins"]).max() < 1e-4
    check_codes(np.asarray(codes_of(model, mel_BTM, jnp.array([mel_BTM.shape[1]])))[0], data["codes"], data["margins"])


@pytest.mark.parametrize("wave", WAVES)
def test_waveform_to_codes(golden, model, wave):
    data = golden(FOLDER + f"{wave}.npz")
    (mel_TM,) = model.features(golden("audio/waveforms.npz")[wave])
    codes = np.asarray(codes_of(model, jnp.asarray(mel_TM[None]), jnp.array([len(mel_TM)])))[0]
    check_codes(codes, data["codes"], data["margins"])


def test_batch_of_unequal_lengths(golden, model):
    data = golden(FOLDER + "batch.npz")
    mels = [golden(FOLDER + f"{wave}.npz")["log_mel"].T for wave in WAVES]
    assert [len(m) for m in mels] == data["mel_lengths"].tolist()
    longest = max(len(m) for m in mels)
    padded = jnp.asarray(np.stack([np.pad(m, ((0, longest - len(m)), (0, 0))) for m in mels]))
    lengths = jnp.asarray(data["mel_lengths"])
    out, codes = encode(model, padded, lengths), codes_of(model, padded, lengths)
    assert np.array_equal(count_vectors(data["mel_lengths"]), data["code_lengths"])
    for row, (wave, n) in enumerate(zip(WAVES, data["code_lengths"], strict=True)):
        assert np.abs(out[row, :n] - data["encoder_out"][row, :n]).max() < 1e-4
        check_codes(np.asarray(codes[row, :n]), data["codes"][row, :n], golden(FOLDER + f"{wave}.npz")["margins"])


def test_token_counts(golden, model):
    for case in json.loads(golden(FOLDER + "token_counts.json").read_text()):
        mels = model.features(np.random.default_rng(0).standard_normal(case["samples"]).astype(np.float32) * 0.1)
        assert sum(count_vectors(len(mel)) for mel in mels) == case["vq06"], case
