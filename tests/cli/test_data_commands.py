"""From recordings to a packed dataset by the command line, with the shipped tokenizers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from aqaa_jax.cli.main import main
from aqaa_jax.cli.pack import mixture
from aqaa_jax.data.datasets import Dataset
from aqaa_jax.data.packed import Packed
from aqaa_jax.data.reader import Reader
from aqaa_jax.dsp import wav
from aqaa_jax.inference.system import load_system
from aqaa_jax.tokens.interleave import unweave_audio

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talk")
    shutil.copy(EXAMPLES / "question.wav", folder)
    turns = [
        {"role": "human", "text": "What is two plus two?", "audio": "question.wav"},
        {"role": "assistant", "text": "It is four.", "audio": "question.wav", "style": "slow"},
    ]
    lost = [{"role": "human", "audio": "lost.wav"}]
    (folder / "m.jsonl").write_text("\n".join(json.dumps({"turns": t}) for t in (turns, lost)))
    return folder


def test_recordings_to_codes_to_rows(talk, capsys):
    assert main(["tokenize", str(talk / "m.jsonl"), str(talk / "codes")]) == 0
    out, err = capsys.readouterr()
    assert "1 of 2 records" in out and "1 skipped, listed in" in out and "ETA" in err
    system = load_system()
    record = Dataset(talk / "codes")[0]
    (expected,) = system.tokenizer.encode([wav.read(EXAMPLES / "question.wav")[0]])
    for turn in record.turns:
        np.testing.assert_array_equal(turn.parts[0].codes.linguistic, expected.linguistic)
        np.testing.assert_array_equal(turn.parts[0].codes.semantic, expected.semantic)
    assert main(["pack", str(talk / "packed"), f"{talk / 'codes'}:aqtaa,asr+tts=2", "--length", "512"]) == 0
    assert "in 2 streams" in capsys.readouterr().out
    packed = Packed(talk / "packed")
    assert packed.weights == {"0-aqtaa": 1.0, "0-asr+tts": 2.0} and packed.vocab == system.config.vocab
    batch = Reader(packed, batch=3, seed=0)(0)
    audio = batch["tokens"][system.vocab.is_audio(batch["tokens"])]
    groups = len(expected.linguistic) // 2
    assert len(audio) % (5 * groups) == 0
    np.testing.assert_array_equal(
        unweave_audio(audio, system.vocab)[0][: 2 * groups], expected.linguistic[: 2 * groups]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tokenize", "no.jsonl", "out"], "no.jsonl: no such manifest"),
        (["tokenize", "no.jsonl", "out", "--wrong"], "unexpected argument '--wrong'"),
        (["tokenize", "no.jsonl", "out", "--processes", "0"], "--processes is 0"),
        (["tokenize", "no.jsonl", "out", "--as", "librispeech"], "is a manifest, which has no columns"),
        (["tokenize", ".", "out"], "not a (whole) dataset"),
        (["tokenize", "no.jsonl", "out", "--model", "gone"], "gone"),
        (["pack", "out", "no.jsonl", "--length", "64"], "expected SRC:MIX"),
        (["pack", "out", "no.jsonl:sft_1", "--length", "64"], "no.jsonl: no such manifest"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_strict_stops(talk, tmp_path, capsys):
    assert main(["tokenize", str(talk / "m.jsonl"), str(tmp_path / "codes"), "--strict"]) == 2
    assert "lost.wav: no such file" in capsys.readouterr().err


def test_mixtures_are_stages_or_shares():
    assert mixture("sft_1") == [(("aqta",), 1), (("aqtaa",), 1)]
    assert mixture("asr") == [(("asr",), 1.0)] and mixture("asr+tts") == [(("asr", "tts"), 1.0)]
    assert mixture("asr+tts=2,text") == [(("asr", "tts"), 2.0), (("text",), 1.0)]
    with pytest.raises(ValueError, match="unknown stage 'pretrain'; expected one of pretrain_1"):
        mixture("pretrain")
    with pytest.raises(ValueError, match="share 'much' in 'asr=much' is no number"):
        mixture("asr=much")
