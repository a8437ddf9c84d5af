"""The model of any training checkpoint as one safetensors file, in this project's own names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from aqaa_jax import atomic
from aqaa_jax.checkpoint import header, shards
from aqaa_jax.checkpoint.average import runs
from aqaa_jax.checkpoint.folder import CONFIG
from aqaa_jax.checkpoint.header import nbytes
from aqaa_jax.checkpoint.store import Saved
from aqaa_jax.convert.progress import Progress

RECORD = "checkpoint.json"
_CHECKPOINTS = "checkpoints"  # where a stage of the recipe keeps them


def is_checkpoint(path: str | Path) -> bool:
    """Whether ``path`` is a folder of training checkpoints, or of a stage that has some."""
    return (
        not (Path(path) / CONFIG).is_file()
        and _steps(path).is_dir()
        and any(p.is_dir() and p.name.isdigit() for p in _steps(path).iterdir())
    )


def run(
    path: str | Path,
    destination: str | Path,
    *,
    step: int | None = None,
    dtype: str = "",
    dry_run: bool = False,
    check: bool = False,
    say: Callable[[str], None],
) -> None:
    """Write ``model.safetensors``, and last ``checkpoint.json`` with the step, which weights they are and their source.

    Weights keep their dtype unless ``dtype`` is given (float weights only); ``checkpoint.files.load_model`` reads the
    file. The averaged model is taken where the run kept one. ``check`` reads the file again and compares hashes.
    Raises ``ValueError`` if ``destination`` is not empty and holds something else.
    """
    if dtype:
        header.check_float(dtype)
    destination, saved = Path(destination), Saved(_steps(path), step)
    plan = {name: jax.ShapeDtypeStruct(t.shape, _cast(t.dtype, dtype)) for name, t in saved.shapes.items()}
    total = sum(map(nbytes, plan.values()))
    which = "averaged model" if saved.averaged else "model"
    say(f"{which} of step {saved.path.name}: {len(plan)} tensors, {total / 1e9:.3f} GB to write in {destination}")
    if dry_run:
        shards.check_space(destination, total)
        return
    record, ours = destination / RECORD, {RECORD, "model.safetensors", "model.sha256.json"}
    if destination.is_dir() and any(p.name not in ours and not p.name.endswith(".part") for p in destination.iterdir()):
        raise ValueError(f"{destination}: is not empty and not an exported checkpoint; expected a new folder")
    record.unlink(missing_ok=True)

    def read(name: str) -> Iterator[np.ndarray]:
        return (run.astype(plan[name].dtype, copy=False) for run in runs(saved, name))

    source = f"{Path(path).absolute()} step {saved.path.name} {which}"
    shards.write_one(destination, plan, read, prefix="model", progress=Progress("export", total, say), source=source)
    atomic.write_json(record, {"step": int(saved.path.name), "weights": which, "source": str(path)})
    if check:
        shards.verify(destination, "model")
        say(f"verified {len(plan)} tensors in {destination}")


def _steps(path: str | Path) -> Path:
    inner = Path(path) / _CHECKPOINTS
    return inner if inner.is_dir() else Path(path)


def _cast(stored: np.dtype, dtype: str) -> np.dtype:
    return np.dtype(dtype) if dtype and jax.numpy.issubdtype(stored, jax.numpy.floating) else np.dtype(stored)
