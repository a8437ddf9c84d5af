"""Stages in processes of their own: what may overlap does, what must wait does, and nothing is left running."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_recipe import smoke

from aqaa_jax.checkpoint.files import read_file
from aqaa_jax.recipe.run import NEEDS, run_recipe
from aqaa_jax.recipe.side_by_side import side_by_side
from aqaa_jax.training.config import STAGES

WORK = "import sys, time; open(sys.argv[1], 'x'); time.sleep(float(sys.argv[2])); open(sys.argv[3], 'x')"
WAITS = """
import signal, sys, time
from aqaa_jax.recipe.side_by_side import end_with_parent
end_with_parent()
def save(number, frame):
    open(sys.argv[2], "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
open(sys.argv[1], "w").close()
time.sleep(60)
"""


def wait_for(*paths):
    end = time.monotonic() + 30
    while not all(p.exists() for p in paths):
        assert time.monotonic() < end, f"none of {paths}"
        time.sleep(0.02)


def test_order_and_number_at_once(tmp_path):
    needs = {"a": frozenset(), "b": frozenset(), "c": frozenset(), "d": frozenset({"a"}), "e": frozenset("abcd")}

    def command(name):
        return [sys.executable, "-c", WORK, tmp_path / f"{name}.begun", "0.3", tmp_path / f"{name}.ended"]

    side_by_side(needs, command, 2, print)
    begun = {name: (tmp_path / f"{name}.begun").stat().st_mtime for name in needs}
    ended = {name: (tmp_path / f"{name}.ended").stat().st_mtime for name in needs}
    for name, others in needs.items():
        assert all(ended[other] <= begun[name] for other in others), name
    at_once = [sum(begun[other] <= when < ended[other] for other in needs) for when in begun.values()]
    assert max(at_once) == 2


def test_one_that_fails_stops_the_others_and_gives_its_code(tmp_path, capsys):
    def command(name):
        if name == "bad":
            return [sys.executable, "-c", "import sys; sys.exit(7)"]
        return [sys.executable, "-c", WAITS, tmp_path / name, tmp_path / f"{name}.saved"]

    with pytest.raises(SystemExit) as stopped:
        side_by_side({"good": frozenset(), "bad": frozenset(), "later": frozenset({"bad"})}, command, 2, print)
    assert stopped.value.code == 7 and not (tmp_path / "later").exists()
    assert capsys.readouterr().out == "[bad] ended with code 7; told good to save and stop\n"


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_stopped_or_killed_it_leaves_nothing_running(tmp_path, number, code):
    files = [tmp_path / name for name in ("begun", "saved")]
    child = [sys.executable, "-c", WAITS, *map(str, files)]
    script = "from aqaa_jax.recipe.side_by_side import side_by_side\n"
    script += f"side_by_side({{'one': frozenset()}}, lambda name: {child!r}, 2, print)"
    parent = subprocess.Popen([sys.executable, "-c", script])
    wait_for(files[0])
    os.kill(parent.pid, number)
    assert parent.wait(timeout=30) == code
    wait_for(files[1])


def test_every_stage_says_what_it_needs():
    assert tuple(NEEDS) == tuple(STAGES)
    for i, name in enumerate(STAGES):
        assert set(NEEDS[name]) <= set(STAGES[:i]), name


def test_jobs_are_refused_below_one(tmp_path):
    with pytest.raises(ValueError, match="jobs is 0; expected 1 or more"):
        run_recipe(smoke(), tmp_path, jobs=0)


@pytest.mark.long
def test_the_smoke_recipe_is_the_same_side_by_side(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "aqaa_jax.cli.main", "train", f"--config={root / 'configs' / 'pocket.py'}:smoke"]
    for jobs in (1, 2):
        subprocess.run([*command, f"--run_dir={tmp_path / str(jobs)}", f"--jobs={jobs}"], check=True, cwd=root)
    for name in ("linguistic", "semantic", "flow", "hift", "decoder"):
        one, two = (read_file(tmp_path / jobs / "model" / f"{name}.safetensors") for jobs in "12")
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_array_equal(np.asarray(one[key]), np.asarray(two[key]), err_msg=f"{name} {key}")
    for stage in ("linguistic", "hift"):
        assert json.loads((tmp_path / "2" / stage / "done.json").read_text())["cpu_seconds"] > 0
