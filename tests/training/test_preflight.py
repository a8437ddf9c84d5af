"""The checks before a run: what they find, whom they name."""

import subprocess
import sys
from pathlib import Path

import pytest

from aqaa_jax.cli.main import main
from aqaa_jax.training import distributed
from aqaa_jax.training.preflight import Check, Expected, agreement, code_hash, preflight

ROOT = Path(__file__).parents[2]
QUICK = {"megabytes": 0.1}


def lines(run_dir, **expected):
    said = []
    passed = preflight(run_dir, Expected(**{**QUICK, **expected}), said.append)
    return passed, "\n".join(said).splitlines()


def test_a_sound_host_passes_every_check(tmp_path):
    passed, said = lines(tmp_path / "new" / "run", devices=8)
    assert passed and all(line.startswith("preflight ok ") for line in said)
    names = [line[13:26].strip() for line in said]
    assert names[:7] == ["git", "code", "python", "jax", "jaxlib", "libtpu", "XLA flags"]
    assert names[7:] == ["clocks", "run dir", "devices", "all-reduce"]
    assert "GB/s per device, 0.1 MB over 8 devices" in said[-1]
    assert list((tmp_path / "new" / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("expected", "name", "message"),
    [
        ({"devices": 9}, "devices", "all hosts together have 8, expected 9"),
        ({"min_bandwidth": 1e9}, "all-reduce", "GB/s, expected 1e+09"),
    ],
)
def test_a_failed_check_is_the_last(tmp_path, expected, name, message):
    passed, said = lines(tmp_path, **expected)
    assert not passed and said[-1].startswith(f"preflight FAIL {name}") and message in said[-1]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    passed, said = lines(tmp_path / "file" / "run")
    assert not passed and "(process 0)" in said[-1] and "Not a directory" in said[-1]


def test_the_odd_one_out_is_named():
    hosts = ["a (process 0)", "b (process 1)", "c (process 2)"]
    assert agreement("jax", ["1", "1", "1"], hosts).failing == ()
    assert agreement("jax", ["2", "1", "1"], hosts).failing == ("a (process 0) has 2, the others 1",)
    assert agreement("jax", ["2", "1"], hosts[:2]).failing == ("b (process 1) has 1, the others 2",)
    assert str(Check("jax", "1 on 2 of 3 hosts", ("a has 2",))).splitlines() == [
        "preflight FAIL jax          1 on 2 of 3 hosts",
        "preflight FAIL jax          a has 2",
    ]


def test_the_code_is_what_is_in_the_files(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    before = code_hash(tmp_path)
    (tmp_path / "b.txt").write_text("no code")
    assert code_hash(tmp_path) == before
    (tmp_path / "a.py").write_text("x = 2\n")
    assert code_hash(tmp_path) != before


def test_the_command(tmp_path, capsys):
    assert main(["preflight", f"--run-dir={tmp_path}", "--devices=8", "--megabytes=0.1"]) == 0
    assert main(["preflight", f"--run-dir={tmp_path}", "--devices=7", "--megabytes=0.1"]) == 1
    assert "expected 7" in capsys.readouterr().err
    assert main(["preflight", f"--run-dir={tmp_path}", "--megabytes=0"]) == 2
    assert "--megabytes is 0.0; expected a positive number" in capsys.readouterr().err


def test_alone_everything_is_local(tmp_path):
    assert distributed.processes() == 1 and distributed.first() and distributed.exchange("x", "mine") == ["mine"]
    distributed.barrier("x")
    tree = {"a": 1}
    assert distributed.whole(tree) is tree


@pytest.mark.parametrize("value", ["2", "1/2", "2/2@host:1", "a/2@host:1", "0/2@host"])
def test_a_variable_of_another_form(monkeypatch, value):
    monkeypatch.setenv(distributed.VARIABLE, value)
    with pytest.raises(ValueError, match=r"expected auto or I/N@HOST:PORT"), distributed.joined():
        pass


@pytest.mark.long
def test_hosts_that_differ_are_named(tmp_path):
    """Three processes of one device; the second is of another commit."""
    text = "[[ $AQAA_DISTRIBUTED == 1/* ]] && export AQAA_SHA=other || export AQAA_SHA=this; exec " + sys.executable
    text += f" -m aqaa_jax.cli.main preflight --run-dir={tmp_path}"
    command = ["bash", str(ROOT / "launch/local.sh"), "--processes=3", "--devices=1", f"--logs={tmp_path / 'logs'}"]
    done = subprocess.run([*command, "bash", "-c", text], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.count("FAIL") == 2 and "(process 1) has other, the others this" in done.stdout
