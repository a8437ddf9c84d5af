"""Every notebook runs from top to bottom, in a folder of its own."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.long]
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("torch")
pytest.importorskip("transformers")
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("to_pytorch.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(path.parents[1]))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells), "clear the outputs before committing"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    last = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
    assert "the same" in last, last
    assert (tmp_path / "pytorch_model" / "config.json").is_file()
