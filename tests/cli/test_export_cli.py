"""``aqaa export`` from the command line: what it writes, and one line for what it cannot."""

import json
import shutil

import pytest

from aqaa_jax.checkpoint import shards
from aqaa_jax.cli.main import main
from aqaa_jax.inference.system import shipped_folder


def test_pocket_decoder(tmp_path, capsys):
    target = tmp_path / "out"
    command = ["export", "pocket", str(target), "--parts", "decoder", "--shard-gb", "0.005"]
    assert main([*command, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "6,162,688" in out and "note: the decoder has ALiBi slopes of its own" in out and not target.exists()
    assert main([*command, "--verify"]) == 0
    out, err = capsys.readouterr()
    assert "verified 39 tensors" in out and "[export]" in err and "peak resident memory" in err
    files = {p.name for p in target.iterdir()}
    assert {
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.model",
        "tokenizer.json",
        "modeling_step1.py",
    } < files
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert len(index["weight_map"]) == 39 and index["metadata"]["total_size"] == 2 * 6_162_688
    assert set(index["weight_map"].values()) == {f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)}
    assert json.loads((target / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_errors_are_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    partial = tmp_path / "partial"
    shutil.copytree(shipped_folder(), partial)
    (partial / "config.json").unlink()
    target = str(tmp_path / "out")
    for arguments, words in [
        ([str(tmp_path / "none"), target], "no such model folder"),
        ([str(tmp_path / "empty"), target], "not a (whole) model folder"),
        ([str(partial), target], "not a (whole) model folder"),
        (["pocket", target, "--parts", "ears"], "unknown part 'ears'"),
        (["pocket", target, "--dtype", "int8"], "dtype is 'int8'"),
        (["pocket", target, "--shard-gb", "0"], "--shard-gb is 0.0"),
        (["pocket", str(shipped_folder() / "config.json")], "is a file"),
        (["pocket", str(partial)], "not empty"),
    ]:
        assert main(["export", *arguments]) == 2
        line = capsys.readouterr().err.strip()
        assert words in line and "\n" not in line, line
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: usage)
    assert main(["export", "pocket", target]) == 2
    assert "GB free" in capsys.readouterr().err.strip().splitlines()[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "partial"]


@pytest.mark.parametrize("argument", ["--help"])
def test_help_names_the_files(argument, capsys):
    with pytest.raises(SystemExit):
        main(["export", argument])
    assert "CosyVoice-300M-25Hz" in capsys.readouterr().out
