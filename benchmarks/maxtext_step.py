"""MaxText's side of ``make maxtext``, in an environment of its own: its train step, compiled for a TPU slice.

    python -P benchmarks/maxtext_step.py OUT OPTION=VALUE ...

Options are MaxText's. Runs ``maxtext.trainers.pre_train.train_compile`` as it is, notes what passes through its
``jit_and_compile``, and writes the program (``OUT/program.txt``) and what else an estimator needs (``OUT/facts.json``).
``-P``, or this folder's ``maxtext.py`` would be taken for the package.

MaxText imports far more than a dense decoder's step needs. The modules of ``ABSENT`` are replaced by empty ones, whose
attributes are empty classes: quantization, tokenizers, elastic restarts, images, other models' layers. To call one with
anything is an error, so none can pass for a part of the step.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.metadata
import json
import os
import resource
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

ABSENT = (
    *("aqt", "qwix", "tokamax", "drjax", "sympy"),  # quantization, other kernels, DiLoCo, n-gram layers
    *("tensorflow", "transformers", "tokenizers", "tiktoken", "sentencepiece", "huggingface_hub", "jinja2"),  # text
    *("librosa", "PIL", "pathwaysutils"),  # sound, images, elastic restarts
    *("maxtext.checkpoint_conversion", "maxtext.kernels.mhc"),  # foreign weights; a layer in the syntax of Python 3.12
)
ENVIRONMENT = {
    "DECOUPLE_GCLOUD": "TRUE",  # MaxText's own switch: empty classes for what talks to the cloud
    "JAX_PLATFORMS": "cpu",
    # libtpu must neither look for a TPU, nor take its lock, nor complain of what it does not find.
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
}
ALWAYS = ("run_name=plan", "enable_checkpointing=false", "dataset_type=synthetic", "internal_compile=true")


class _Empty(type):
    """A class with classes for attributes."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty(name, (), {})


class _EmptyModule(ModuleType):
    def __getattr__(self, name: str) -> type:
        return getattr(_Empty(self.__name__, (), {}), name)


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of ``ABSENT``, and what is below them, before anything else does."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        absent = any(fullname == name or fullname.startswith(f"{name}.") for name in ABSENT)
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if absent else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def main(folder: Path, options: list[str]) -> None:
    os.environ |= ENVIRONMENT
    sys.meta_path.insert(0, Absent())
    import maxtext.configs
    from maxtext.trainers.pre_train import train_compile

    compile_step = train_compile.jit_and_compile

    def noted(function: Any, arguments: Any, keywords: Any, mesh: Any, *rest: Any) -> Any:
        began = time.monotonic()
        compiled = compile_step(function, arguments, keywords, mesh, *rest)
        _write(folder, compiled, mesh, time.monotonic() - began)
        return compiled

    train_compile.jit_and_compile = noted
    base = Path(maxtext.configs.__file__).parent / "base.yml"
    train_compile.main(["", str(base), *ALWAYS, *options])


def _write(folder: Path, compiled: Any, mesh: Any, seconds: float) -> None:
    (folder / "program.txt").write_text(compiled.as_text())
    memory, usage = compiled.memory_analysis(), resource.getrusage(resource.RUSAGE_SELF)
    facts = {
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        # Devices in the order in which the program numbers its partitions: slice, coordinates, core on the chip.
        "places": [(getattr(d, "slice_index", 0) or 0, list(d.coords), d.core_on_chip) for d in mesh.devices.flat],
        "peak_bytes": memory.peak_memory_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "compile_seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss_gb": usage.ru_maxrss * 1024 / 1e9,
        "versions": {name: importlib.metadata.version(name) for name in ("maxtext", "jax", "jaxlib", "libtpu", "flax")},
    }
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
