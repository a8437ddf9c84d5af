"""PyTorch and ONNX files as they are published; needs torch (and onnx), which only conversion uses."""

import pickle
import sys
import zipfile

import numpy as np
import pytest
from published_files import copy_golden, numpy_weights
from safetensors.numpy import load_file

from aqaa_jax.checkpoint import folder
from aqaa_jax.config import SystemConfig, TokenizerConfig, VocabConfig
from aqaa_jax.convert import onnx_file, paraformer
from aqaa_jax.convert.importer import Options, import_folder
from aqaa_jax.convert.readers import TorchReader
from aqaa_jax.parts import abstract

BASE = SystemConfig(vocab=VocabConfig(linguistic=256))
FILES = ("model.safetensors", "config.yaml", "am.mvn", "linguistic_tokenizer.npy")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def run(source, target):
    return import_folder(source, target, BASE, Options(), say=print)


def paraformer_folder(golden, directory, torch, **options):
    copy_golden(golden, "paraformer_linguistic", directory, *FILES)
    state = {k: torch.from_numpy(v) for k, v in load_file(directory / "model.safetensors").items()}
    (directory / "model.safetensors").rename(directory.parent / "kept.safetensors")
    torch.save(state, directory / "model.pt", **options)
    return state


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False])
def test_model_pt_gives_what_the_safetensors_give(golden, tmp_path, torch, zipped):
    state = paraformer_folder(golden, tmp_path / "in", torch, _use_new_zipfile_serialization=zipped)
    (account,) = run(tmp_path / "in", tmp_path / "out")
    assert set(account.used) | set(account.aside) == set(state) | set(paraformer.FILE_WEIGHTS)
    (tmp_path / "kept.safetensors").rename(tmp_path / "in" / "model.safetensors")
    config, weights, _ = paraformer.read_folder(tmp_path / "in")
    system = SystemConfig(tokenizer=TokenizerConfig(linguistic=config))
    got = numpy_weights(folder.read_part(tmp_path / "out", "linguistic", abstract(system, "linguistic")))
    for name, value in weights.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.torch
def test_reader_keeps_dtypes_and_drops_its_map(tmp_path, torch, monkeypatch):
    state = {
        "half": torch.arange(12.0).reshape(3, 4).to(torch.bfloat16),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "count": torch.tensor(7),
    }
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    monkeypatch.setattr("aqaa_jax.convert.readers._REMAP", 10)
    reader = TorchReader(tmp_path / "a.pt")
    for _ in range(2):
        for name, tensor in state.items():
            got = reader.read(name)
            assert got.dtype == reader.shapes[name].dtype and got.shape == reader.shapes[name].shape
            np.testing.assert_array_equal(got.astype(np.float32), tensor.float().numpy())
    assert str(reader.shapes["half"].dtype) == "bfloat16"


class Touch:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.torch
def test_bad_files_are_named_and_code_does_not_run(golden, tmp_path, torch):
    source = tmp_path / "in"
    state = paraformer_folder(golden, source, torch)
    path, whole = source / "model.pt", (source / "model.pt").read_bytes()

    def fails(message):
        with pytest.raises(ValueError, match=message):
            run(source, tmp_path / "out")
        assert not (tmp_path / "out").exists() and not (tmp_path / "made").exists()

    path.write_bytes(whole[:-300])
    fails(r"model.pt: not a state dict that can be loaded weights-only")
    torch.save(state | {"evil": Touch(tmp_path / "made")}, path)
    fails(r"model.pt: not a state dict that can be loaded weights-only")
    path.write_bytes(pickle.dumps(Touch(tmp_path / "made")))
    fails(r"model.pt: not a state dict that can be loaded weights-only")
    torch.save(state | {"epoch": 3}, path)
    fails(r"model.pt: entry 'epoch' is int; expected a tensor")
    torch.save([1, 2], path)
    fails(r"model.pt: holds list; expected a state dict")
    name = "encoder.after_norm.bias"
    torch.save(state | {name: state[name].long()}, path)
    fails(rf"tensor '{name}' has dtype int64, expected floats")
    assert zipfile.is_zipfile(path)


@pytest.mark.torch
def test_onnx_files_are_listed_as_the_onnx_package_does(golden):
    onnx = pytest.importorskip("onnx")
    path = golden("s3_semantic/speech_tokenizer_v1.onnx")
    graph, theirs = onnx_file.read_graph(path), onnx.load(path).graph
    assert list(graph.weights) == [i.name for i in theirs.initializer]
    for i in theirs.initializer:
        value = onnx_file.read_weight(path, i.name, graph.weights[i.name])
        np.testing.assert_array_equal(value, onnx.numpy_helper.to_array(i))
    assert {n.name: tuple(n.input) for n in theirs.node} == {n: node.inputs for n, node in graph.nodes.items()}
    assert graph.nodes["/conv1/Conv"].ints["strides"] == (2,)


def test_a_text_file_is_told_without_torch(golden, tmp_path, monkeypatch):
    copy_golden(golden, "paraformer_linguistic", tmp_path / "in", *FILES[1:])
    (tmp_path / "in" / "model.pt").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"model.pt: not a PyTorch file \(neither a zip archive nor a pickle\)"):
        run(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "model.pt").write_bytes(b"PK\x03\x04 and so on")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"model.pt: reading it needs torch: pip install"):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
