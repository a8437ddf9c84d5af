"""The house rules that a machine can read: floors, forbidden pairs, owners, sizes, and free imports.

Everything is read with ``ast``; only the last test imports anything. Exceptions are listed here, and a stale
one fails.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "aqaa_jax"
FLOORS = (
    {"atomic", "config", "shapes", "values", "version"},
    {"sharding"},
    {"kernels"},
    {"nn", "dsp", "tokens", "checkpoint"},
    {"codec", "decoder", "vocoder", "vision"},
    {"losses", "parts"},
    {"data"},
    {"training"},
    {"plan"},
    {"inference", "convert", "evaluation", "serving"},
    {"recipe"},
    {"experiments"},
    {"cli"},
)
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
SIBLINGS = {("evaluation", "inference"), ("serving", "inference")}  # the allowed ones
MODELS = {"codec", "decoder", "vocoder", "vision"}
FORBIDDEN = {
    "losses": MODELS,  # pure functions of arrays
    "data": MODELS | {"losses"},  # workers stay light
    "inference": {"training", "data", "losses"},
    "serving": {"training", "data", "losses"},
    "convert": {"training", "data", "losses"},
    "parts": {"losses"},
}
# The root module re-exports the public names, lazily.
ROOT_MAY_IMPORT = {"version", "inference"}
OWNERS = {  # foreign module -> the only part that may import it
    "orbax": "checkpoint",
    "torch": "convert",
    "onnx": "convert",
    "onnxruntime": "codec",  # it runs the published speaker encoder; conversion reads files and runs nothing
    "sentencepiece": "tokens",
}
TOKENS_MAY_IMPORT = {"numpy", "sentencepiece", PACKAGE} | sys.stdlib_module_names
SAFETENSORS_WRITERS = {"save", "save_file", "serialize", "serialize_file"}
MESH_NAMES = {"PartitionSpec", "AxisType", "MESH_AXES", "FSDP", "TENSOR"}
MESH_WORDS = {"fsdp", "tensor"}
FILE_LINES, FUNCTION_LINES = 300, 60
TWIN = "torch_twin"
# "path: rule" -> why. Keep it short.
EXCEPTIONS: dict[str, str] = {}


def imports(tree):
    """(module, names or None) of every import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield ("." * node.level + (node.module or ""), {alias.name for alias in node.names})


def own_parts(tree):
    for module, names in imports(tree):
        head, *rest = module.split(".")
        if head == PACKAGE:
            yield from [rest[0]] if rest else sorted(names or ())


def check_floors(part, tree):
    for other in own_parts(tree):
        if part == "__init__":
            if other not in ROOT_MAY_IMPORT:
                yield f"the root imports {other}"
        elif other not in FLOOR_OF:
            yield f"imports {other}, which is on no floor"
        elif other == part or FLOOR_OF[other] == FLOOR_OF[part] == 0:
            continue
        elif FLOOR_OF[other] > FLOOR_OF[part]:
            yield f"{part} imports {other} from a higher floor"
        elif FLOOR_OF[other] == FLOOR_OF[part] and (part, other) not in SIBLINGS:
            yield f"{part} imports its sibling {other}"
        elif other in FORBIDDEN.get(part, ()):
            yield f"{part} must not see {other}"


def check_owners(part, tree):
    for module, names in imports(tree):
        head = module.split(".")[0]
        if OWNERS.get(head, part) != part:
            yield f"{part} imports {module}; only {OWNERS[head]} may"
        if part == "tokens" and head not in TOKENS_MAY_IMPORT:
            yield f"tokens imports {module}; NumPy, sentencepiece and the standard library only"
        if head == "safetensors" and part != "checkpoint" and (names is None or names & SAFETENSORS_WRITERS):
            yield f"{part} may read safetensors files, not write them"
        if head == "":
            yield "relative import"


def check_mesh(part, tree):
    if part == "sharding":
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            named = {alias.name for alias in node.names} & MESH_NAMES
        elif isinstance(node, ast.Attribute):
            of_jax = isinstance(node.value, ast.Name) and node.value.id == "jax"
            named = {node.attr} & (MESH_NAMES | {"make_mesh"} if of_jax else MESH_NAMES)
        else:
            named = {node.value} & MESH_WORDS if isinstance(node, ast.Constant) and isinstance(node.value, str) else ()
        for name in named:
            yield f"{part} spells the mesh ({name}); only sharding may"


def check_sizes(text, tree):
    count = len(text.splitlines())
    if count > FILE_LINES:
        yield f"{count} lines; at most {FILE_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"function {node.name} has {lines} lines; at most {FUNCTION_LINES}"


def violations(path, text):
    """All broken rules of one file, ``path`` relative to the package."""
    part, tree = Path(path).parts[0].removesuffix(".py"), ast.parse(text)
    if part != "__init__" and part not in FLOOR_OF:
        return [f"{path}: {part} is on no floor"]
    found = [*check_floors(part, tree), *check_owners(part, tree), *check_mesh(part, tree), *check_sizes(text, tree)]
    return [f"{path}: {problem}" for problem in found]


def modules():
    """The package's modules. The torch twin is data that `aqaa export` copies: it runs in other people's programs."""
    return sorted(m for m in (ROOT / PACKAGE).rglob("*.py") if m.parent.name != TWIN)


@pytest.mark.parametrize("path", [m.relative_to(ROOT / PACKAGE).as_posix() for m in modules()])
def test_module_keeps_the_rules(path):
    found = violations(path, (ROOT / PACKAGE / path).read_text(encoding="utf-8"))
    assert [v for v in found if v not in EXCEPTIONS] == []


def test_twin_is_short_and_never_imported():
    twin = sorted((ROOT / PACKAGE / "convert" / TWIN).iterdir())
    assert [m.name for m in twin if m.suffix] == ["configuration_step1.py", "modeling_step1.py"]
    for path in (m for m in twin if m.suffix):
        assert list(check_sizes(path.read_text(), ast.parse(path.read_text()))) == []
    for path in modules():
        assert not any(TWIN in module for module, _ in imports(ast.parse(path.read_text()))), path


def test_no_stale_exception():
    paths = {exception.split(":")[0] for exception in EXCEPTIONS}
    found = {v for path in paths for v in violations(path, (ROOT / PACKAGE / path).read_text(encoding="utf-8"))}
    assert set(EXCEPTIONS) <= found


PLANTED = [
    ("losses/dpo.py", "from aqaa_jax.decoder.model import Decoder", "must not see decoder"),
    ("nn/mlp.py", "def f():\n    import aqaa_jax.training.step", "from a higher floor"),
    ("codec/s3.py", "from aqaa_jax import vocoder", "imports its sibling vocoder"),
    ("inference/answer.py", "from aqaa_jax.training.loop import run", "must not see training"),
    ("data/tasks.py", "from aqaa_jax.losses import ctc", "must not see losses"),
    ("convert/flow.py", "from aqaa_jax.inference import answer", "imports its sibling inference"),
    ("cli/main.py", "from aqaa_jax.helpers import x", "on no floor"),
    ("helpers.py", "", "helpers is on no floor"),
    ("__init__.py", "from aqaa_jax.decoder import model", "the root imports decoder"),
    ("training/loop.py", "import orbax.checkpoint as ocp", "only checkpoint may"),
    ("codec/s3.py", "def f():\n    import torch", "only convert may"),
    ("convert/s3.py", "def f():\n    import onnxruntime", "only codec may"),
    ("data/text.py", "import sentencepiece", "only tokens may"),
    ("tokens/text.py", "import jax", "tokens imports jax"),
    ("convert/flow.py", "from safetensors.numpy import save_file", "not write"),
    ("nn/mlp.py", "from . import norm", "relative import"),
    ("training/step.py", "from jax.sharding import PartitionSpec as P", "spells the mesh"),
    ("training/step.py", "import jax\nspec = jax.sharding.PartitionSpec()", "spells the mesh"),
    ("training/step.py", "import jax\nmesh = jax.make_mesh((1,), ('d',))", "spells the mesh"),
    ("training/step.py", "axis = mesh.shape['fsdp']", "spells the mesh"),
    ("nn/mlp.py", "x = 1\n" * 301, "301 lines"),
    ("nn/mlp.py", "def long():\n" + "    x = 1\n" * 60, "function long has 61 lines"),
]


@pytest.mark.parametrize(("path", "text", "message"), PLANTED)
def test_planted_violation_is_found(path, text, message):
    found = violations(path, text)
    assert len(found) == 1 and message in found[0]


def test_allowed_imports_pass():
    for path, text in [
        ("evaluation/sphinx.py", "from aqaa_jax.inference.answer import Aqaa\nfrom aqaa_jax.data import order"),
        ("convert/flow.py", "def f():\n    import torch, onnx\nfrom safetensors.numpy import load_file"),
        ("checkpoint/store.py", "import orbax.checkpoint\nfrom safetensors.flax import save_file"),
        ("sharding/mesh.py", "from jax.sharding import PartitionSpec\nTENSOR = 'tensor'"),
        ("training/config.py", "from aqaa_jax.config import SystemConfig\nstrategy = 'fsdp_tensor'"),
        ("tokens/text.py", "import io, re\nimport numpy as np\nimport sentencepiece as spm"),
    ]:
        assert violations(path, text) == []


def run_without_devices(code):
    """Run ``code`` with a platform that does not exist: any use of a device fails."""
    env = os.environ | {"JAX_PLATFORMS": "none_such", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=600)


def test_importing_any_module_touches_no_device():
    names = [m.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for m in modules()]
    names = [n.removesuffix(".__init__") for n in names if not n.endswith("__main__")]
    done = run_without_devices(f"import importlib\nfor name in {names!r}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr[-3000:]


def test_planted_device_is_found():
    assert "none_such" in run_without_devices("import jax.numpy as jnp\nx = jnp.zeros(3)").stderr
