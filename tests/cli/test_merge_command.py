"""``aqaa merge``: flags to a merged checkpoint, and one line and exit code 2 for bad ones."""

import json

import numpy as np
import pytest

from aqaa_jax.checkpoint.files import read_file, save_file
from aqaa_jax.cli.main import main


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("abc"):
        save_file(f"{name}.safetensors", {"x": np.arange(12, dtype=np.float32).reshape(3, 4) * (i + 1)})
    return tmp_path


def test_merge(files, capsys):
    inputs = ["a.safetensors:5", "b.safetensors:5", "c.safetensors"]
    assert main(["merge", *inputs, "-o", "out.safetensors", "--dtype", "float16", "--json"]) == 0
    printed = capsys.readouterr()
    x = np.asarray(read_file("out.safetensors")["x"])
    assert x.dtype == np.float16
    np.testing.assert_allclose(x, np.arange(12).reshape(3, 4) * 18 / 11, rtol=1e-3)
    report = json.loads(printed.out)
    assert report["output"] == "out.safetensors" and [i["weight"] for i in report["inputs"]] == [5, 5, 1]
    assert report["dtype"] == "float16" and report["accumulate"] == "float32"
    assert "[averaging] 0.00 of 0.00 GB" in printed.err and "left" in printed.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a.safetensors:5", "none.safetensors:1"], "none.safetensors: no such weights file"),
        (["a.safetensors:5", "none:1"], "none: no such checkpoint"),
        (["a.safetensors:x"], "a.safetensors:x: 'x' is not a weight"),
        (["a.safetensors:-1", "b.safetensors:2"], "weight -1: expected a number of at least 0"),
        (["a.safetensors:0", "b.safetensors:0"], "the weights add up to 0"),
        (["a.safetensors:nan"], "weight nan: expected"),
        (["a.safetensors", "text.safetensors"], "text.safetensors: not a readable safetensors file"),
        (["b.safetensors", "-o", "a.safetensors"], "a.safetensors: exists"),
    ],
)
def test_bad_arguments(files, arguments, message, capsys):
    (files / "text.safetensors").write_text("hello, this is not a tensor")
    before = sorted(p.name for p in files.iterdir())
    assert main(["merge", "-o", "out.safetensors", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("aqaa merge: ") and message in lines[0]
    assert sorted(p.name for p in files.iterdir()) == before


def test_no_room(files, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    assert main(["merge", "a.safetensors", "-o", "out.safetensors"]) == 2
    assert "GB free" in capsys.readouterr().err and not (files / "out.safetensors").exists()
