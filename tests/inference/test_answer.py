"""The shipped model, wav to wav, through the three-line API."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from flax import nnx

from aqaa_jax import Aqaa
from aqaa_jax.cli.main import main
from aqaa_jax.dsp import wav as wavs
from aqaa_jax.inference import system

QUESTION = Path(__file__).parents[2] / "examples" / "question.wav"


@pytest.fixture(scope="module")
def model():
    return Aqaa.load()


def test_three_lines(model, tmp_path):
    answer = model.ask(QUESTION)
    assert answer.text and answer.stopped and answer.wav.dtype == np.float32 and answer.wav.ndim == 1
    assert 0.5 < answer.seconds < 6.0 and np.abs(answer.wav).max() > 0.05 and np.isfinite(answer.wav).all()
    answer.save(tmp_path / "a.wav")
    back, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == answer.sample_rate == 22050 and len(back) == len(answer.wav)


def test_int8_weights_give_the_same_answer(model):
    rounded = Aqaa.load(int8=True)
    assert rounded.ask(QUESTION, speak=False).text == model.ask(QUESTION, speak=False).text


def test_large_stacks_taken_apart_give_the_same_answer(model, monkeypatch):
    assert not isinstance(model.system.decoder.blocks, nnx.List)  # a small model compiles faster stacked
    monkeypatch.setattr(system, "LARGE", 1)
    apart = Aqaa(system.for_answering(model.system))
    for blocks in (apart.system.decoder.blocks, apart.system.tokenizer.semantic.encoder.blocks):
        assert isinstance(blocks, nnx.List)
    one, other = model.ask(QUESTION, speak=False), apart.ask(QUESTION, speak=False)
    assert other.text == one.text
    np.testing.assert_array_equal(other.tokens, one.tokens)


def test_same_seed_same_answer_and_a_list_gives_what_each_gives_alone(model):
    one = model.ask(QUESTION)
    wav, rate = wavs.read(QUESTION)
    both = model.ask([QUESTION, QUESTION])
    again = model.ask(np.stack([wav, wav], axis=1), sample_rate=rate)  # stereo
    for other in (*both, again):
        assert other.text == one.text
        np.testing.assert_array_equal(other.tokens, one.tokens)
    np.testing.assert_allclose(both[0].wav, one.wav, atol=2e-3)


@pytest.mark.parametrize("rate, suffix", [(8000, "wav"), (44100, "flac"), (48000, "ogg")])
def test_rates_and_formats(model, tmp_path, rate, suffix):
    wav, source = wavs.read(QUESTION)
    path = tmp_path / f"q.{suffix}"
    soundfile.write(path, wavs.resample(wav, source, rate), rate)
    assert model.ask(path).text.endswith(".")


def test_an_array_needs_its_rate(model):
    with pytest.raises(ValueError, match="needs its sample_rate"):
        model.ask(np.ones(16000, np.float32))


def test_command_line_writes_everything_and_json(tmp_path, capsys):
    paths = {name: tmp_path / f"answer.{name}" for name in ("wav", "txt", "png")}
    arguments = [
        "ask",
        str(QUESTION),
        "-o",
        str(paths["wav"]),
        "--text",
        str(paths["txt"]),
        "--plot",
        str(paths["png"]),
    ]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["text"] == paths["txt"].read_text().strip()
    assert report["answer_seconds"] == pytest.approx(soundfile.info(paths["wav"]).duration, abs=1e-3)
    assert paths["png"].read_bytes().startswith(b"\x89PNG")
