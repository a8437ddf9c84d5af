"""``campplus.onnx``: imported beside the parts, exported again, and used by ``aqaa ask --voice``."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import soundfile
from published_files import write_system

from aqaa_jax.checkpoint import folder, hashes
from aqaa_jax.checkpoint.folder import SPEAKER_MODEL
from aqaa_jax.cli.main import main
from aqaa_jax.codec import speaker
from aqaa_jax.convert import export
from aqaa_jax.convert.export_files import VOCODER
from aqaa_jax.convert.importer import Options, import_folder
from aqaa_jax.inference.system import load_system, shipped_folder

QUESTION = shipped_folder().parents[2] / "examples" / "question.wav"
RECORD = "speaker.import.json"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The shipped pocket model as published folders, and its configuration, as if trained with voice prompts."""
    directory, system = tmp_path_factory.mktemp("published"), load_system()
    write_system(directory, system, shipped_folder() / folder.TEXT_MODEL)
    c = system.config
    flow = dataclasses.replace(c.vocoder.flow, prompt_probability=0.5)
    return directory, dataclasses.replace(c, vocoder=dataclasses.replace(c.vocoder, flow=flow))


@pytest.fixture
def vocoder(published, golden, tmp_path):
    """A copy of the vocoder folder with some readable ONNX file as its speaker encoder."""
    shutil.copytree(published[0] / "vocoder", tmp_path / "vocoder")
    shutil.copy(golden("s3_semantic/speech_tokenizer_v1.onnx"), tmp_path / "vocoder" / SPEAKER_MODEL)
    return tmp_path / "vocoder"


def run(source, target, base, said=None, **options):
    said = [] if said is None else said
    import_folder(source, target, base, Options(**options), given=True, say=said.append, report=said.append)


def test_it_is_copied_recorded_and_listed(published, vocoder, tmp_path):
    (directory, base), target, said = published, tmp_path / "out", []
    run(vocoder, target, base, said, dry_run=True)
    assert any(line.startswith("speaker: ") and str(vocoder / SPEAKER_MODEL) in line for line in said)
    assert not target.exists()
    for source in (vocoder, directory / "llm", directory / "tokenizer"):
        run(source, target, base, said, verify=True)
    assert "speaker: read again, every file has the hash that was written" in said
    digest = hashes.sha256(vocoder / SPEAKER_MODEL)
    assert hashes.sha256(target / SPEAKER_MODEL) == digest
    record = json.loads((target / RECORD).read_text())
    assert record["sha256"] == {SPEAKER_MODEL: digest} and record["from"] == str(vocoder / SPEAKER_MODEL)
    imported = json.loads((target / folder.CONFIG).read_text())["provenance"]["imported"]
    assert imported["speaker"]["sha256"] == {SPEAKER_MODEL: digest} and set(imported) == {*folder.PARTS, "speaker"}
    assert load_system(target).speaker_model == target / SPEAKER_MODEL
    (target / SPEAKER_MODEL).write_bytes((target / SPEAKER_MODEL).read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=rf"{SPEAKER_MODEL}: has sha256"):
        run(vocoder, target, base, verify=True)


def test_it_goes_on_and_replaces_only_its_own(published, vocoder, tmp_path, monkeypatch):
    base, target = published[1], tmp_path / "out"
    run(vocoder, target, base, parts=("flow",))
    before = (target / SPEAKER_MODEL).stat().st_mtime_ns
    run(vocoder, target, base, parts=("flow",))
    assert (target / SPEAKER_MODEL).stat().st_mtime_ns == before
    (target / RECORD).unlink()  # as if killed between the two
    run(vocoder, target, base, parts=("flow",))
    assert (target / RECORD).is_file() and not list(target.glob(".*.part"))
    (target / RECORD).unlink()
    (target / SPEAKER_MODEL).write_bytes(b"somebody's")
    with pytest.raises(ValueError, match=rf"out/{SPEAKER_MODEL}: not written by an import"):
        run(vocoder, target, base, parts=("flow",))
    assert (target / SPEAKER_MODEL).read_bytes() == b"somebody's"


def test_a_bad_one_is_named_before_anything_is_written(published, vocoder, tmp_path):
    path = vocoder / SPEAKER_MODEL
    whole = path.read_bytes()
    for content in (whole[:-1000], b"version https://git-lfs.github.com/spec/v1\n", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{SPEAKER_MODEL}: not a readable ONNX file"):
            run(vocoder, tmp_path / "out", published[1], parts=("flow",))
        assert not (tmp_path / "out").exists()


def test_a_folder_without_it_or_without_flow(published, vocoder, tmp_path):
    (directory, base), said = published, []
    run(directory / "vocoder", tmp_path / "out", base, said, parts=("flow",))
    assert any(f"no {SPEAKER_MODEL}" in line for line in said)
    run(vocoder, tmp_path / "out", base, parts=("hift",))  # nothing of hift reads it
    assert not (tmp_path / "out" / SPEAKER_MODEL).exists() and not (tmp_path / "out" / RECORD).exists()


def test_export_writes_it_back(published, vocoder, golden_folder, tmp_path):
    source, destination = tmp_path / "model", tmp_path / "export"
    shutil.copytree(golden_folder, source)
    export.write(export.plan(source, ("flow", "hift")), tmp_path / "without", say=str)
    assert not (tmp_path / "without" / VOCODER / SPEAKER_MODEL).exists()
    shutil.copy(vocoder / SPEAKER_MODEL, source)
    planned = export.plan(source, ("flow", "hift"))
    with pytest.raises(ValueError, match="another model"):
        export.write(planned, tmp_path / "without", say=str)
    export.write(planned, destination, say=str)
    written = destination / VOCODER / SPEAKER_MODEL
    assert written.read_bytes() == (vocoder / SPEAKER_MODEL).read_bytes()
    assert SPEAKER_MODEL in export.report(planned, destination)
    written.write_bytes(written.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=rf"{SPEAKER_MODEL}: differs"):
        export.verify(planned, destination, say=str)


@pytest.mark.torch
def test_ask_with_an_imported_network(published, speaker_network, golden, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    (directory, base), target = published, tmp_path / "model"
    source = tmp_path / "vocoder"
    shutil.copytree(directory / "vocoder", source)
    _, weight, bias = speaker_network(source / SPEAKER_MODEL)
    for one in (source, directory / "llm", directory / "tokenizer"):
        run(one, target, base)
    wav = golden("audio/waveforms.npz")["speech"][8000:24000]
    prompt, output, seen = tmp_path / "prompt.wav", tmp_path / "answer.wav", []
    soundfile.write(prompt, wav, 16000, subtype="FLOAT")
    real = speaker.speaker_vector
    monkeypatch.setattr(speaker, "speaker_vector", lambda *given: seen.append(real(*given)) or seen[-1])
    arguments = ["ask", str(QUESTION), "-o", str(output), "--model", str(target), "--json"]
    assert main([*arguments, "--voice", str(prompt), "--voice-text", "some words"]) == 0
    told = capsys.readouterr()
    report = json.loads(told.out)
    assert report["voice"] == str(prompt) and report["voice_text"] == "some words"
    assert f"taking the voice of {prompt} (1.0 s)" in told.err and soundfile.info(output).duration > 0.1
    (vector,) = seen
    np.testing.assert_allclose(vector, np.abs(speaker.features(wav)).mean(axis=0) @ weight + bias, rtol=1e-4, atol=1e-4)
