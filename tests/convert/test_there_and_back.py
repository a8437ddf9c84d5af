"""The two commands undo each other: what export wrote and import read, export writes again byte for byte."""

import pytest

from aqaa_jax.cli.main import main
from aqaa_jax.convert.export_files import TOKENIZER, VOCODER
from aqaa_jax.inference.system import shipped_folder

CONFIG = str(shipped_folder().parents[2] / "configs" / "pocket.py")
OWN = ("export.sha256.json", "model.sha256.json")  # records, not content


def files_of(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.torch
@pytest.mark.long
def test_whole_pocket_model(tmp_path):
    pytest.importorskip("torch")  # import reads .pt files with it
    there, model, back = (tmp_path / name for name in ("there", "model", "back"))
    assert main(["export", "pocket", str(there), "--dtype", "float32"]) == 0
    for folder in ("", TOKENIZER, VOCODER):
        assert main(["import", str(there / folder), str(model), "--config", CONFIG]) == 0
    assert main(["export", str(model), str(back), "--dtype", "float32", "--verify"]) == 0
    first, second = files_of(there), files_of(back)
    assert set(first) == set(second) and len(first) > 15
    assert [name for name in first if first[name] != second[name] and name not in OWN] == []
