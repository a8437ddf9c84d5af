"""The soak of ``make soak``, small: killed runs are the run, and so are those of other numbers of processes."""

import importlib.util
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("soak", SOAK)
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["soak"]


@pytest.mark.long
def test_a_killed_run_is_the_run(soak, tmp_path):
    arguments = [
        "--parts",
        "killed",
        "--steps",
        "24",
        "--kills",
        "2",
        "--save-every",
        "6",
        "--folder",
        str(tmp_path / "s"),
    ]
    assert soak.main([*arguments, "--json", str(tmp_path / "soak.json"), "--plot", str(tmp_path / "soak.png")]) == 0
    report = soak.json.loads((tmp_path / "soak.json").read_text())["parts"]["killed"]
    assert len(report["kills"]) == 2 and report["rows"] == 24 and report["arrays"] > 50
    assert (tmp_path / "soak.png").stat().st_size > 1000


@pytest.mark.long
def test_other_numbers_of_processes_see_the_same_batches(soak, tmp_path):
    assert soak.main(["--parts", "elastic", "--steps", "24", "--folder", str(tmp_path / "s")]) == 0


def test_an_unknown_part_is_refused(soak, capsys):
    with pytest.raises(SystemExit):
        soak.main(["--parts", "killed,lucky"])
    assert "unknown part 'lucky'; expected some of killed, elastic, memory, wait" in capsys.readouterr().err
