"""A voice prompt: what decoder and vocoder are given of it, and what cannot be followed."""

import dataclasses
import logging
import shutil
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from flax import nnx

from aqaa_jax import Aqaa
from aqaa_jax.checkpoint.folder import SPEAKER_MODEL
from aqaa_jax.codec import speaker
from aqaa_jax.config import EstimatorConfig, FlowConfig, FlowEncoderConfig, HiftConfig, MelConfig, VocoderConfig
from aqaa_jax.dsp import wav as wavs
from aqaa_jax.dsp.mel import vocoder_mel
from aqaa_jax.inference import answer as answers
from aqaa_jax.inference.system import load_system, shipped_folder
from aqaa_jax.tokens.interleave import weave_audio
from aqaa_jax.tokens.vocab import BOS, BOT, EOT
from aqaa_jax.vocoder.model import Vocoder

QUESTION = Path(__file__).parents[2] / "examples" / "question.wav"
RATE = 24000


FLOW = FlowConfig(
    mel=MelConfig(num_mels=8),
    encoder=FlowEncoderConfig(embed=16, heads=2, mlp=32, layers=1),
    regulator_layers=1,
    estimator=EstimatorConfig(channels=(16, 16), heads=2, head_dim=8, blocks=1, mid_blocks=1),
    steps=2,
)  # trained with voice prompts, says its prompt_probability
HIFT = HiftConfig(
    num_mels=8,
    channels=16,
    f0_channels=8,
    f0_layers=1,
    harmonics=1,
    resblock_kernels=(3,),
    resblock_dilations=((1,),),
    source_kernels=(3, 3),
    source_dilations=((1,), (1,)),
)


def with_prompts(system):
    """``system`` with a small vocoder of random weights, none of them zero."""
    vocab = system.vocab.audio
    vocoder = VocoderConfig(dataclasses.replace(FLOW, vocab=vocab), HIFT)
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: Vocoder(vocoder, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    leaves = [0.3 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    config = dataclasses.replace(system.config, vocoder=vocoder)
    return system._replace(config=config, vocoder=jax.tree.unflatten(tree, leaves))


@pytest.fixture(scope="module")
def model():
    return Aqaa(with_prompts(load_system()))


@pytest.fixture(scope="module")
def recording(golden):
    """1.5 s of speech between silences, quiet, at 24 kHz."""
    speech = wavs.resample(golden("audio/waveforms.npz")["speech"][4000:28000], 16000, RATE)
    return np.pad(0.3 * speech, (6000, 9000)).astype(np.float32)


@pytest.fixture(scope="module")
def prompt_file(recording, tmp_path_factory):
    path = tmp_path_factory.mktemp("voice") / "prompt.wav"
    soundfile.write(path, recording, RATE, subtype="FLOAT")
    return path


def fake_onnxruntime(monkeypatch, heard):
    """A runtime whose network returns the first frame's first values; ``heard`` gets path and frames."""

    class Session:
        def __init__(self, path, options, providers):
            heard.append(path)

        def get_inputs(self):
            return [types.SimpleNamespace(name="input")]

        def run(self, outputs, values):
            heard.append(values["input"])
            return [np.resize(values["input"][0, 0], (1, 192))]

    fake = types.SimpleNamespace(InferenceSession=Session, SessionOptions=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)


def test_the_voice_is_prepared_as_published(model, recording, caplog):
    """Tokens of the loud and trimmed recording; mel of the recording as it is."""
    voice, system = model.voice(recording, sample_rate=RATE), model.system
    heard = wavs.trim_silence(wavs.energy_norm(wavs.resample(recording, RATE, 16000)), 16000)
    (codes,) = system.tokenizer.encode([heard])
    np.testing.assert_array_equal(voice.ids, weave_audio(codes.linguistic, codes.semantic, system.vocab))
    np.testing.assert_array_equal(voice.tokens, voice.ids - system.vocab.audio_start)
    (untrimmed,) = model.hear([recording], RATE)
    assert len(untrimmed) > len(voice.ids) + 10
    mel = system.config.vocoder.flow.mel
    as_it_is = wavs.resample(recording, RATE, mel.sample_rate)
    np.testing.assert_array_equal(voice.mel, vocoder_mel(as_it_is, mel))
    assert len(voice.mel) == len(as_it_is) // mel.hop
    assert voice.speaker.shape == (system.config.vocoder.flow.speaker_dim,) and not voice.speaker.any()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and SPEAKER_MODEL in record.getMessage()


def test_the_prompt_changes_the_voice_and_not_the_words(model, prompt_file, recording):
    plain, prompted = model.ask(QUESTION), model.ask(QUESTION, voice=prompt_file)
    np.testing.assert_array_equal(prompted.tokens, plain.tokens)
    assert prompted.text == plain.text and prompted.wav.shape == plain.wav.shape
    scale = np.abs(plain.wav).max()
    assert np.abs(prompted.wav - plain.wav).max() > 0.1 * scale
    stereo = np.stack([recording, recording], axis=1)
    voice = model.voice(stereo, sample_rate=RATE)
    tokens = plain.audio_tokens
    np.testing.assert_allclose(model.speak([tokens], voice=voice)[0], prompted.wav, atol=1e-3 * scale)
    for changed in ({"mel": voice.mel[::-1]}, {"tokens": voice.tokens[::-1]}):
        (other,) = model.speak([tokens], voice=voice._replace(**changed))
        assert np.abs(other - prompted.wav).max() > 0.01 * scale


def test_the_speaker_network_gives_the_vector(model, recording, tmp_path, monkeypatch, caplog):
    heard, given = [], []
    fake_onnxruntime(monkeypatch, heard)
    vocoder = types.SimpleNamespace(synthesize=lambda rows, *prompt, key: given.extend(prompt) or rows)
    speaking = Aqaa(model.system._replace(speaker_model=tmp_path / SPEAKER_MODEL, vocoder=vocoder))
    voice = speaking.voice(recording, sample_rate=RATE)
    path, frames = heard
    assert path == str(tmp_path / SPEAKER_MODEL) and not caplog.records
    np.testing.assert_array_equal(frames[0], speaker.features(wavs.resample(recording, RATE, 16000)))
    np.testing.assert_array_equal(voice.speaker[:80], frames[0, 0])
    speaking.speak([np.arange(5)], voice=voice)
    assert [id(part) for part in given] == [id(voice.tokens), id(voice.mel), id(voice.speaker)]


def test_a_folder_is_loaded_with_its_speaker_network(tmp_path):
    assert load_system().speaker_model is None
    shutil.copytree(shipped_folder(), tmp_path / "model")
    (tmp_path / "model" / SPEAKER_MODEL).write_bytes(b"a network")
    assert load_system(tmp_path / "model").speaker_model == tmp_path / "model" / SPEAKER_MODEL


def test_the_text_puts_the_prompt_into_the_conversation(model, prompt_file, monkeypatch):
    seen, generate = [], answers.generate

    def recording_generate(decoder, prompts, *args, **options):
        seen.extend(prompts)
        return generate(decoder, prompts, *args, **options)

    monkeypatch.setattr(answers, "generate", recording_generate)
    voice = model.voice(prompt_file, text="  the day after monday ")
    model.ask(QUESTION, voice=prompt_file, voice_text="the day after monday", speak=False)
    model.ask(QUESTION, voice=voice, speak=False)
    model.ask(QUESTION, voice=prompt_file, speak=False)
    spell = model.system.text.encode_span
    wav, rate = wavs.read(QUESTION)
    (question,) = model.hear([wav], rate)
    human, assistant = [BOT, *spell("human\n")], [BOT, *spell("assistant\n")]
    exchange = [*human, *spell("the day after monday"), EOT, *assistant, *voice.ids, EOT]
    last = [*human, *question, EOT, *assistant]
    assert [list(map(int, ids)) for ids in seen] == [[BOS, *exchange, *last]] * 2 + [[BOS, *last]]


def test_a_model_of_one_voice_refuses(prompt_file):
    with pytest.raises(ValueError, match=r"cannot follow a voice prompt: .*\(flow.prompt_probability is 0\)"):
        Aqaa.load().ask(QUESTION, voice=prompt_file)


def test_bad_prompts_are_named(model, prompt_file, recording, tmp_path):
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(RATE), RATE)
    for voice, message in [
        (tmp_path / "none.wav", "none.wav: no such audio file"),
        (silent, "silent.wav: silent"),
        (recording[:1000], r"voice array: 0.042 s of audio is too short"),
        (np.tile(recording, 16), r"voice array: .* s of audio is too long; expected at most 30 s"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.ask(QUESTION, sample_rate=RATE, voice=voice)
    with pytest.raises(ValueError, match="needs its sample_rate"):
        model.ask(QUESTION, voice=recording)
    for voice in (None, model.voice(prompt_file)):
        with pytest.raises(ValueError, match=r"voice text 'hello' has no recording"):
            model.ask(QUESTION, voice=voice, voice_text="hello")
