"""Every notebook: begins with an install cell, is committed without outputs, and runs from top to bottom."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EXPERIMENTS = ("codebooks", "joining", "merging", "patterns", "preference")


def cells(path: Path, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def test_all_are_there():
    assert [path.stem for path in NOTEBOOKS] == sorted([*EXPERIMENTS, "quickstart", "to_pytorch"])
    assert {path.stem for path in (FOLDER.parent / "configs" / "experiments").glob("*.py")} == set(EXPERIMENTS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_committed_and_all_code_compiles(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    for text in cells(path, "code"):
        compile(text, path.name, "exec")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_install_cell_installs_where_nothing_is_installed_and_only_there(path, tmp_path, monkeypatch):
    install, ran = cells(path, "code")[0], []
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(install, names)
    assert not ran and names.get("ROOT", FOLDER.parent) == FOLDER.parent
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="set SOURCE above to its git URL"):
        exec(install, {})
    url = "https://host/owner/aqaa_jax.git"
    exec(re.sub('^SOURCE = ""', f'SOURCE = "{url}"', install, flags=re.MULTILINE), {})
    assert any(url in part for command in ran for part in command)
    assert any("pip" in command and "install" in command for command in ran)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_what_the_paper_claims_and_that_nothing_was_run_where_nothing_was(name):
    text, code = ("\n".join(cells(FOLDER / f"{name}.ipynb", kind)) for kind in ("markdown", "code"))
    assert "**Claim**" in text and "Not run yet" in code and f'NAME = "{name}"' in code
    results = FOLDER / "results" / f"{name}.json"
    if results.exists():  # then of this experiment, at full size, whole
        kept = json.loads(results.read_text())
        assert kept["config"] == f"configs/experiments/{name}.py:pocket"
        assert kept["cells"]["measured"] == kept["cells"]["of"]


def executed(path: Path, tmp_path: Path, monkeypatch):
    """The notebook's last output after a run from top to bottom in ``tmp_path``."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    return "".join(output.get("text", "") for output in notebook.cells[-1].outputs), notebook


@pytest.mark.long
def test_quickstart_runs(tmp_path, monkeypatch):
    last, notebook = executed(FOLDER / "quickstart.ipynb", tmp_path, monkeypatch)
    assert "Paris" in last and (tmp_path / "quickstart.png").is_file()
    shown = [o for cell in notebook.cells for o in cell.get("outputs", ()) if "text/html" in o.get("data", {})]
    assert sum("<audio" in o["data"]["text/html"] for o in shown) == 2


@pytest.mark.long
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_runs_at_toy_size(name, tmp_path, monkeypatch):
    last, _ = executed(FOLDER / f"{name}.ipynb", tmp_path, monkeypatch)
    results = json.loads((tmp_path / f"{name}-toy" / "results.json").read_text())
    assert results["cells"]["measured"] == results["cells"]["of"] == len(results["arms"])
    assert {claim["verdict"] for claim in results["claims"]} == {"undecided"}  # one seed decides nothing
    assert all(claim["says"] in last for claim in results["claims"])


@pytest.mark.torch
@pytest.mark.long
def test_to_pytorch_runs(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    last, _ = executed(FOLDER / "to_pytorch.ipynb", tmp_path, monkeypatch)
    assert "the same" in last, last
    assert (tmp_path / "pytorch_model" / "config.json").is_file()
