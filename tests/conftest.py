"""Test settings: CPU with 8 virtual devices, strict dtypes, and the folder of reference data."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
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


@pytest.fixture
def as_for_users():
    """Programs compiled with LLVM's optimisations: for tests that compare two of them to the last bits."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


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


_JOIN = """
import json, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
address, rank, *arguments = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(rank))
"""


@pytest.fixture(scope="session")
def two_processes():
    """``two_processes(code, *arguments, path=())`` runs ``code`` in two processes that share eight CPU devices.

    It finds its ``rank`` ("0" or "1") and the ``arguments`` as strings; ``path`` is added to where it imports from.
    Gives what each of the two prints last, read as JSON.
    """

    def run(code: str, *arguments: str | Path, path: tuple[Path, ...] = ()):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
        env["PYTHONPATH"] = os.pathsep.join(map(str, (Path(__file__).parents[1], *path)))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        commands = ([sys.executable, "-c", _JOIN + code, address, str(rank), *arguments] for rank in range(2))
        running = [subprocess.Popen(command, env=env, **pipes) for command in commands]
        try:
            outputs = [process.communicate(timeout=500) for process in running]
        finally:
            for process in running:
                process.kill()
        for process, (_, errors) in zip(running, outputs, strict=True):
            assert process.returncode == 0, errors[-3000:]
        return [json.loads(out.strip().splitlines()[-1]) for out, _ in outputs]

    return run


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
