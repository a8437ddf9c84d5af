"""The linguistic tokenizer against the reference data, and both tokenizers together."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import nnx
from safetensors.numpy import load_file

from aqaa_jax.checkpoint.tree import named_weights, with_weights
from aqaa_jax.codec.quantize import nearest
from aqaa_jax.codec.tokenizer import DualTokenizer, LinguisticTokenizer, SemanticTokenizer
from aqaa_jax.config import TokenizerConfig
from aqaa_jax.convert import paraformer, s3
from aqaa_jax.dsp import fbank

pytestmark = pytest.mark.parity
FOLDER = "paraformer_linguistic/"
WAVES = ["chirp", "speech"]
codes_of = jax.jit(lambda model, frames, lengths: model(frames, lengths))
encode = jax.jit(lambda model, feats, lengths: model.encoder(feats, lengths))
windows_of = jax.jit(lambda model, feats, lengths: model.encoder.windows(feats, lengths))


@pytest.fixture(scope="module")
def model(golden):
    config, weights, unused = paraformer.read_folder(golden(FOLDER + "config.yaml").parent)
    assert unused and not any(name.startswith("encoder.") for name in unused)
    return with_weights(jax.eval_shape(lambda: LinguisticTokenizer(config, rngs=nnx.Rngs(0))), weights)


def check_tokens(codes, data, distances=None):
    sure = data["margins"] > 1e-3
    assert np.array_equal(codes[sure], data["tokens"][sure])
    for i in np.flatnonzero(~sure):
        assert data["tokens"][i] in np.argsort(distances[i])[:2]


def test_config_files_agree(golden, model):
    values = json.loads(golden(FOLDER + "config.json").read_text())
    assert values == yaml.safe_load(golden(FOLDER + "config.yaml").read_text())
    assert paraformer.config_from_upstream(values, codes=model.config.codes) == model.config


def test_conversion_is_exact_both_ways(golden, model):
    state = load_file(golden(FOLDER + "model.safetensors"))
    back = paraformer.to_upstream(named_weights(model), model.config)
    assert set(back) == set(state) - set(paraformer.unused_names(state))
    assert all(np.array_equal(back[name], state[name]) for name in back)
    shift, scale = paraformer.read_cmvn(golden(FOLDER + "am.mvn"))
    assert len(shift) == model.config.features
    assert np.array_equal(model.encoder.cmvn_shift[...], shift) and np.array_equal(model.encoder.cmvn_scale[...], scale)
    assert np.array_equal(model.codebook.table[...], np.load(golden(FOLDER + "linguistic_tokenizer.npy")))


def test_conversion_names_what_is_wrong(golden, model, tmp_path):
    state, config = load_file(golden(FOLDER + "model.safetensors")), model.config
    files = {"cmvn": paraformer.read_cmvn(golden(FOLDER + "am.mvn")), "codebook": np.asarray(model.codebook.table[...])}
    name = "encoder.encoders.1.self_attn.linear_out.bias"
    with pytest.raises(ValueError, match=f"{name}' is missing"):
        paraformer.from_upstream({k: v for k, v in state.items() if k != name}, config, **files)
    with pytest.raises(ValueError, match=r"unexpected published tensor 'encoder\.extra'"):
        paraformer.from_upstream({**state, "encoder.extra": np.zeros(1)}, config, **files)
    text = tmp_path / "am.mvn"
    text.write_text(paraformer.cmvn_text(*files["cmvn"]))
    assert all(np.array_equal(a, b) for a, b in zip(paraformer.read_cmvn(text), files["cmvn"], strict=True))
    text.write_text("<Nnet>")
    with pytest.raises(ValueError, match="no <AddShift> vector"):
        paraformer.read_cmvn(text)
    with pytest.raises(FileNotFoundError, match="has no config"):
        paraformer.read_folder(tmp_path)


@pytest.mark.parametrize("wave", WAVES)
def test_filter_bank_and_features(golden, model, wave):
    wav, data = golden("audio/waveforms.npz")[wave], golden(FOLDER + f"{wave}.npz")
    gap = np.abs(fbank.fbank(wav, model.config) - data["fbank_full"])
    assert gap.max() < 1e-2 and gap.mean() < 1e-4
    feats = np.asarray(model.encoder.normalise(jnp.asarray(model.features(wav))))
    assert feats.shape == data["feats"].shape
    assert np.abs(feats - data["feats"]).max() < 3e-3


@pytest.mark.parametrize("wave", WAVES)
def test_encoder_tokens_and_margins(golden, model, wave):
    data = golden(FOLDER + f"{wave}.npz")
    feats_BTM, lengths_B = jnp.asarray(data["feats"][None]), jnp.array([len(data["feats"])])
    out = np.asarray(encode(model, feats_BTM, lengths_B))[0]
    assert np.abs(out - data["enc_out"]).max() < 1e-4
    assert np.abs(out - data["enc_out_fp64"]).max() < 1e-4
    windows = np.asarray(windows_of(model, feats_BTM, lengths_B))[0]
    for p, expected in enumerate(data["enc_window"]):
        real = ~np.isnan(expected[:, 0])
        assert real.sum() == model.config.overlap + data["chunk_frames"][p]
        assert np.abs(windows[p, : len(expected)][real] - expected[real]).max() < 1e-4, p
    codes, distances = nearest(jnp.asarray(out), model.codebook.table[...])
    check_tokens(np.asarray(codes), data, np.asarray(distances))
    square = np.sum(np.square(data["enc_out"]), axis=-1, keepdims=True)
    near = np.sqrt(np.sort(np.asarray(distances), axis=-1)[:, :2] + square)
    assert np.abs(near[:, 1] - near[:, 0] - data["margins"]).max() < 1e-3


@pytest.mark.parametrize("wave", WAVES)
def test_waveform_to_tokens_at_once_and_streamed(golden, model, wave):
    wav, data = golden("audio/waveforms.npz")[wave], golden(FOLDER + f"{wave}.npz")
    frames = model.features(wav)
    codes = np.asarray(codes_of(model, jnp.asarray(frames[None]), jnp.array([len(frames)])))[0]
    check_tokens(codes, data)
    streamed, counts, state, hop = [], [], model.start(), fbank.sizes(model.config)[2]
    for i in range(0, len(wav), hop):
        out, state = model.push(state, wav[i : i + hop], final=i + hop >= len(wav))
        streamed.append(out)
        counts += [len(out)] if len(out) else []  # a short rest completes no frame
    assert counts == data["chunk_frames"].tolist()
    check_tokens(np.concatenate(streamed), data)


def test_session(golden, model):
    session = json.loads(golden(FOLDER + "session.json").read_text())
    wav, bounds, state = golden("audio/waveforms.npz")[session["wave"]], session["bounds"], model.start()
    for i, expected in enumerate(session["tokens_per_piece"]):
        codes, state = model.push(state, wav[bounds[i] : bounds[i + 1]], final=i == len(bounds) - 2)
        assert codes.tolist() == expected, i


def test_dither(golden, model):
    data = golden(FOLDER + "dither.npz")
    wav = golden("audio/waveforms.npz")["speech"][: int(data["n_samples"])]
    frames = fbank.lfr(wav, model.config, data["noise"])
    feats = model.encoder.normalise(jnp.asarray(frames))
    assert np.abs(feats - data["feats"]).max() < 3e-3
    out = np.asarray(encode(model, jnp.asarray(data["feats"][None]), jnp.array([len(frames)])))[0]
    assert np.abs(out - data["enc_out"]).max() < 1e-4
    check_tokens(np.asarray(codes_of(model, jnp.asarray(frames[None]), jnp.array([len(frames)])))[0], data)
    state, at, hop, pieces = fbank.start(model.config), 0, fbank.sizes(model.config)[2], []
    for i, n in enumerate(data["frames_per_call"]):
        piece = wav[i * hop : (i + 1) * hop]
        last = i == len(data["frames_per_call"]) - 1
        out, state = fbank.push(state, piece, model.config, final=last, noise_TW=data["noise"][at : at + n])
        pieces.append(out)
        at += n
    assert [len(p) for p in pieces] == data["chunk_frames"].tolist()
    assert np.abs(np.concatenate(pieces) - frames).max() < 1e-4


def test_token_counts(golden, model):
    for case in json.loads(golden(FOLDER + "token_counts.json").read_text()):
        assert fbank.count_frames(case["samples"], model.config) == case["vq02"], case
        wav = np.random.default_rng(0).standard_normal(case["samples"]).astype(np.float32)
        assert len(model.features(wav)) == case["vq02"], case


def test_both_tokenizers_on_waveforms(golden, model):
    semantic_config = s3.config_from_upstream(json.loads(golden("s3_semantic/config.json").read_text()))
    weights = s3.from_upstream(load_file(golden("s3_semantic/model.safetensors")), semantic_config)
    semantic = with_weights(jax.eval_shape(lambda: SemanticTokenizer(semantic_config, rngs=nnx.Rngs(0))), weights)
    cases = json.loads(golden("interleave/wav2token.json").read_text())
    for trim in (0, 1):
        for norm in (0, 1):
            config = TokenizerConfig(model.config, semantic_config, energy_norm=bool(norm), trim=bool(trim))
            names = [n for n in cases if n.endswith(f"_trim{trim}_norm{norm}")]
            wavs = [golden("audio/waveforms.npz")[n.split("_")[0]] for n in names]
            tokenizer = DualTokenizer.of(config, model, semantic)
            for name, wav, codes in zip(names, wavs, tokenizer.encode(wavs), strict=True):
                assert len(tokenizer.prepare(wav, 16000)) == cases[name]["samples"], name
                assert codes.linguistic.tolist() == cases[name]["vq02"], name
                assert codes.semantic.tolist() == cases[name]["vq06"], name
