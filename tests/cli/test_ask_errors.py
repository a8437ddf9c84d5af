"""Bad input to ``aqaa ask``: one line naming the file and the problem, exit code 2, no answer file."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile

from aqaa_jax.checkpoint.files import read_file, save_file
from aqaa_jax.cli.main import main
from aqaa_jax.inference.system import shipped_folder

RATE = 16000


def tone(seconds: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def nan_file(path):
    wav = tone(1.0)
    wav[100] = np.nan
    soundfile.write(path, wav, RATE, subtype="FLOAT")


def truncated(path):
    soundfile.write(path, tone(1.0), RATE)
    path.write_bytes(path.read_bytes()[:9000])


def three_hours(path):
    soundfile.write(path, np.tile(tone(1.0)[::2], 3 * 3600), RATE // 2, subtype="PCM_U8")


BAD_FILES = {
    "missing": (lambda path: None, "no such file|missing|does not exist"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "text": (lambda path: path.write_text("this is not a recording\n" * 50), "not|cannot"),
    "silent": (lambda path: soundfile.write(path, np.zeros(RATE), RATE), "silen"),
    "short": (lambda path: soundfile.write(path, tone(0.05), RATE), "0.05|short"),
    "nan": (nan_file, "finite|NaN|nan"),
    "truncated": (truncated, "cut short|truncated|ends"),
    "long": (three_hours, "10800|long|most"),
    "low_rate": (lambda path: soundfile.write(path, tone(1.0), 4000), "4000|8000"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_recordings(name, tmp_path, capsys):
    make, pattern = BAD_FILES[name]
    question = tmp_path / f"{name}.wav"
    make(question)
    assert main(["ask", str(question), "-o", str(tmp_path / "answer.wav")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("aqaa ask: ") and question.name in lines[0]
    assert re.search(pattern, lines[0]), lines[0]
    assert not (tmp_path / "answer.wav").exists()


def broken_model(tmp_path, change):
    folder = tmp_path / "model"
    shutil.copytree(shipped_folder(), folder)
    change(folder)
    return folder


def edit(change):
    def apply(folder):
        weights = read_file(folder / "decoder.safetensors")
        change(weights)
        save_file(folder / "decoder.safetensors", weights)

    return apply


def unknown_key(folder):
    values = json.loads((folder / "config.json").read_text())
    values["system"]["decoder"]["hidden_size"] = 7
    (folder / "config.json").write_text(json.dumps(values))


BAD_MODELS = {
    "missing tensor": (edit(lambda w: w.pop("norm.scale")), "decoder.safetensors: tensor 'norm.scale' is missing"),
    "extra tensor": (edit(lambda w: w.update(more=w["norm.scale"])), "decoder.safetensors: unexpected tensor 'more'"),
    "misshapen tensor": (
        edit(lambda w: w.update({"norm.scale": w["norm.scale"][:-1]})),
        "decoder.safetensors: tensor 'norm.scale' has shape",
    ),
    "cut file": (
        lambda f: (f / "flow.safetensors").write_bytes((f / "flow.safetensors").read_bytes()[:1000]),
        "flow.safetensors: not a readable safetensors file",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: missing"),
    "unknown config key": (unknown_key, "unknown config key 'decoder.hidden_size'"),
    "no folder": (shutil.rmtree, "no such model folder"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_models(name, tmp_path, capsys):
    change, message = BAD_MODELS[name]
    question = tmp_path / "q.wav"
    soundfile.write(question, tone(1.0), RATE)
    folder = broken_model(tmp_path, change)
    assert main(["ask", str(question), "-o", str(tmp_path / "answer.wav"), "--model", str(folder)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1] and "Traceback" not in "".join(lines)
    assert not (tmp_path / "answer.wav").exists()


def test_an_output_folder_that_does_not_exist(tmp_path, capsys):
    question = tmp_path / "q.wav"
    soundfile.write(question, tone(1.0), RATE)
    assert main(["ask", str(question), "-o", str(tmp_path / "no" / "answer.wav")]) == 2
    assert "does not exist" in capsys.readouterr().err


def error_of(arguments, capsys):
    """The one line that ``aqaa ask`` prints when it refuses ``arguments``, before loading anything."""
    assert main(["ask", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_voices_that_cannot_be_followed(tmp_path, capsys):
    question, prompt, folder = tmp_path / "q.wav", tmp_path / "prompt.wav", tmp_path / "model"
    for path, seconds in ((question, 1.0), (prompt, 31.0)):
        soundfile.write(path, tone(seconds), RATE)
    asked = [question, "-o", tmp_path / "answer.wav"]
    line = error_of([*asked, "--voice", prompt], capsys)
    assert "'pocket' cannot follow a voice prompt" in line and "prompt_probability is 0" in line
    assert "expected --voice PROMPT.wav" in error_of([*asked, "--voice-text", "hello"], capsys)
    folder.mkdir()
    values = json.loads((shipped_folder() / "config.json").read_text())
    values["system"]["vocoder"]["flow"]["prompt_probability"] = 0.5
    (folder / "config.json").write_text(json.dumps(values))  # nothing else: the prompt is checked first
    asked += ["--model", folder]
    assert f"{prompt}: 31.0 s of audio is too long; expected at most 30 s" in error_of(
        [*asked, "--voice", prompt], capsys
    )
    for name, (make, pattern) in BAD_FILES.items():
        if name == "long":
            continue
        bad = tmp_path / f"{name}_voice.wav"
        make(bad)
        line = error_of([*asked, "--voice", bad], capsys)
        assert bad.name in line and re.search(pattern, line), line
    assert not (tmp_path / "answer.wav").exists()
