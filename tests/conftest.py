"""Test settings: CPU with 8 virtual devices, strict dtypes, and the folder of reference data."""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs run once here: LLVM takes longer to optimise them than they take to run. `make test-all` leaves that on.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import numpy as np
import pytest

import aqaa_jax  # noqa: F401  (sets Flax to tree mode)

jax.config.update("jax_numpy_rank_promotion", "allow")
GOLDEN = Path(os.environ.get("AQAA_GOLDEN", Path(__file__).parent / "golden"))


@pytest.fixture(scope="session")
def golden():
    """``golden("folder/file.npz")`` -> dict of arrays; a path for any other file."""

    def read(name: str):
        path = GOLDEN / name
        if path.suffix == ".npz":
            with np.load(path) as data:
                return {k: data[k] for k in data.files}
        return path

    return read


@pytest.fixture(scope="session")
def speaker_network():
    """``speaker_network(path, width=192)`` writes a small random ONNX network like ``campplus.onnx``.

    Its input and output are the published ones, ``[1, T, 80] -> [1, width]``; it gives the mean over time of the
    absolute values times ``weight`` plus ``bias``. Returns (path, weight, bias).
    """
    onnx = pytest.importorskip("onnx")

    def write(path: Path, width: int = 192):
        rng, helper, kind = np.random.default_rng(0), onnx.helper, onnx.TensorProto.FLOAT
        weight, bias = (rng.standard_normal(s).astype(np.float32) for s in ((80, width), (width,)))
        nodes = [
            helper.make_node("Abs", ["input"], ["size"]),
            helper.make_node("ReduceMean", ["size"], ["mean"], axes=[1], keepdims=0),
            helper.make_node("Gemm", ["mean", "xvector.dense.linear.weight", "bias"], ["output"]),
        ]
        given = [helper.make_tensor_value_info("input", kind, [1, "T", 80])]
        made = [helper.make_tensor_value_info("output", kind, [1, width])]
        weights = {"xvector.dense.linear.weight": weight, "bias": bias}
        initial = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
        graph = helper.make_graph(nodes, "campplus", given, made, initial)
        opset = [helper.make_opsetid("", 13)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
        return path, weight, bias

    return write


@pytest.fixture(scope="session")
def libtpu():
    """Skips without libtpu (extra ``plan``), which has no wheel for this system or was left out."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'aqaa_jax[plan]' (Linux only)")
