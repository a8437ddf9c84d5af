"""`.pt` files without torch: the pickle means what torch takes it for, the bytes are the tensors'."""

import io
import pickle
import zipfile
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqaa_jax.convert import torch_file


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.normal(size=(5, 3)).astype(np.float32),
        "a.bias": rng.normal(size=(7,)).astype(jnp.bfloat16),
        "scalar": np.float32(3.5).reshape(()),
        "empty": np.zeros((0, 4), np.float32),
        "count": np.arange(6, dtype=np.int64).reshape(1, 2, 3),
        "half": rng.normal(size=(2, 2)).astype(np.float16),
    }


def plan_of(tensors):
    return {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in tensors.items()}


def rows_of(tensors):
    return lambda name: [tensors[name]] if tensors[name].ndim == 0 else [tensors[name][:2], tensors[name][2:]]


class Unpickler(pickle.Unpickler):
    """What ``torch.load`` does, in NumPy: storages from the archive, strided views of them."""

    def __init__(self, archive, stem):
        super().__init__(io.BytesIO(archive.read(f"{stem}/data.pkl")))
        self.archive, self.stem = archive, stem

    def find_class(self, module, name):
        dtypes = {"FloatStorage": np.float32, "BFloat16Storage": jnp.bfloat16}
        dtypes |= {"HalfStorage": np.float16, "LongStorage": np.int64}
        known = {("torch._utils", "_rebuild_tensor_v2"): self.rebuild, ("collections", "OrderedDict"): OrderedDict}
        return known.get((module, name)) or dtypes[name]

    def persistent_load(self, reference):
        kind, dtype, key, device, count = reference
        assert (kind, device) == ("storage", "cpu")
        storage = np.frombuffer(self.archive.read(f"{self.stem}/data/{key}"), dtype)
        assert len(storage) == count
        return storage

    def rebuild(self, storage, offset, shape, strides, requires_grad, hooks):
        assert not requires_grad and hooks == OrderedDict()
        steps = [stride * storage.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps)


def test_pickle_rebuilds_every_tensor(tensors, tmp_path):
    told = []
    torch_file.write(tmp_path / "net.pt", plan_of(tensors), rows_of(tensors), told.append)
    with zipfile.ZipFile(tmp_path / "net.pt") as archive:
        loaded = Unpickler(archive, "net").load()
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read("net/version").strip() == b"3" and archive.read("net/byteorder") == b"little"
    assert list(loaded) == list(tensors)
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype and loaded[name].shape == value.shape
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)
    assert sum(told) == sum(value.nbytes for value in tensors.values())


def test_raw_bytes_come_back_and_files_are_reproducible(tensors, tmp_path):
    plan = plan_of(tensors)
    torch_file.write(tmp_path / "net.pt", plan, rows_of(tensors))
    raw = {name: b"".join(pieces) for name, pieces in torch_file.read_raw(tmp_path / "net.pt", plan)}
    assert raw == {name: value.tobytes() for name, value in tensors.items()}
    (tmp_path / "again").mkdir()
    torch_file.write(tmp_path / "again" / "net.pt", plan, lambda name: [tensors[name]])
    assert (tmp_path / "again" / "net.pt").read_bytes() == (tmp_path / "net.pt").read_bytes()


def test_wrong_blocks_leave_no_file(tensors, tmp_path):
    plan = plan_of(tensors)
    for wrong in (lambda name: [tensors[name].astype(np.float64)], lambda name: [tensors[name][:1]]):
        with pytest.raises(ValueError, match=r"a\.weight"):
            torch_file.write(tmp_path / "net.pt", plan, wrong)
    with pytest.raises(ValueError, match=r"'x' has dtype uint8"):
        torch_file.write(tmp_path / "net.pt", {"x": jax.ShapeDtypeStruct((1,), np.uint8)}, lambda name: [])
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_named(tensors, tmp_path):
    plan = plan_of(tensors)
    (tmp_path / "net.pt").write_text("not an archive")
    with pytest.raises(ValueError, match=r"net\.pt"):
        list(torch_file.read_raw(tmp_path / "net.pt", plan))
    torch_file.write(tmp_path / "net.pt", plan, rows_of(tensors))
    with pytest.raises(ValueError, match=r"net\.pt.*planned"):
        list(torch_file.read_raw(tmp_path / "net.pt", dict(list(plan.items())[:-1])))
