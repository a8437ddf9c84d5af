"""Training checkpoints through Orbax: asynchronous, atomic. Only this file and ``slices`` know Orbax.

``Saved`` reads the same folders box by box (``average``), with TensorStore underneath: Orbax itself restores whole
arrays. ``set_damaged_aside`` finds the steps that are not as they were written.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax import nnx
from orbax.checkpoint import type_handlers

from aqaa_jax.checkpoint import integrity
from aqaa_jax.checkpoint.average import SLICE, Box, boxes
from aqaa_jax.checkpoint.tree import check_weights, named_weights, with_weights

Tree = TypeVar("Tree")
Model = TypeVar("Model", bound=nnx.Module)
ITEM = "default"  # the folder of a step that holds the tree
MODEL, AVERAGE = "model.", "ema."  # begin the names of a training state's model and of its average
VALUE = ".value"  # ends the names of a module's leaves
CHUNK = 1 << 26  # bytes of a stored chunk at most: the least that can be read of a tensor
TEMPORARY = ".orbax-checkpoint-tmp"  # in the names of unfinished steps
CACHE = CHUNK  # bytes of decoded chunks kept while boxes are read


class Store:
    """Checkpoints of one run under ``directory``; any pytree of arrays goes in and comes out.

    Kept are the newest step, the newest ``keep`` of those that are multiples of ``period`` (of all, with 0), every
    multiple of ``every``, and the one whose figure ``best`` is least (or greatest, with a minus sign before the name).
    """

    def __init__(self, directory: str | Path, *, keep: int = 2, period: int = 0, every: int = 0, best: str = ""):
        logging.getLogger("absl").setLevel(logging.WARNING)
        self._directory, self._best, self._worst_last = Path(directory).absolute(), best.removeprefix("-"), best[:1]
        options = ocp.CheckpointManagerOptions(
            create=True,
            cleanup_tmp_directories=True,
            best_fn=self._merit if best else None,
            preservation_policy=_Kept(keep, period, every, self._best_of),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._record),
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def latest(self) -> int | None:
        """The newest complete step, or ``None``."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All steps, a save in flight waited for."""
        self.wait()
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step with the best figure of those still there, the earliest of equals; ``None`` without figures."""
        return self._best_of({step: self._manager.metrics(step) for step in self._manager.all_steps()})

    def figures(self, step: int) -> dict[str, float]:
        """What ``step`` was saved with."""
        return dict(self._manager.metrics(step) or {})

    def save(self, step: int, tree: Any, figures: Mapping[str, float] | None = None) -> None:
        """Start saving ``tree``; returns once the arrays may be changed, the write goes on behind."""
        names, leaves, _ = _named(tree)
        chunked = {name: ocp.SaveArgs(chunk_byte_size=CHUNK) for name in names}
        saved = ocp.args.StandardSave(dict(zip(names, leaves, strict=True)), save_args=chunked)
        self._manager.save(step, args=saved, metrics=dict(figures) if figures else None, force=True)

    def restore(self, step: int, like: Tree, otherwise: Tree | None = None) -> Tree:
        """The tree saved at ``step`` with the structure, dtypes and placement of ``like``.

        Leaves that the step does not hold are those of ``otherwise``, if there is one; else they are an error.
        """
        names, leaves, structure = _named(like)
        found = names if otherwise is None else _named(_tree_metadata(self._directory / str(step) / ITEM).tree)[0]
        abstract = {
            n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for n, x in zip(names, leaves, strict=True)
            if n in found
        }
        saved = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        rest = dict(zip(*_named(otherwise)[:2], strict=True)) if otherwise is not None else {}
        return jax.tree_util.tree_unflatten(structure, [saved[n] if n in saved else rest[n] for n in names])

    def wait(self) -> None:
        """Return when no save is in flight."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for a save in flight and release the manager."""
        self.wait()
        self._manager.close()

    def _best_of(self, figures: Mapping[int, Mapping[str, float] | None]) -> int | None:
        merits = {s: self._merit(f) for s, f in sorted(figures.items()) if f and self._best in f}
        return max(merits, key=lambda s: merits[s], default=None)

    def _merit(self, figures: Mapping[str, float]) -> float:
        return figures[self._best] if self._worst_last == "-" else -figures[self._best]

    def _record(self) -> None:
        """Called by Orbax when a step is written and not yet named."""
        if jax.process_index() == 0:
            for folder in self._directory.glob(f"*{TEMPORARY}*"):
                integrity.record(folder)


@dataclass(frozen=True)
class _Kept:
    """Orbax's preservation policy as ``Store`` describes it."""

    keep: int
    period: int
    every: int
    best_of: Callable[[Mapping[int, Any]], int | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [c.step for c in checkpoints]
        regular = [s for s in steps if not self.period or s % self.period == 0]
        kept = {*steps[-1:], *regular[-self.keep :], self.best_of({c.step: c.metrics for c in checkpoints})}
        return [s in kept or bool(self.every and s % self.every == 0) for s in steps]


def set_damaged_aside(directory: str | Path) -> Iterator[tuple[int, str, Path]]:
    """Move damaged steps out of ``directory``, the newest first, until one is sound: (step, why, where it is now).

    A step without ``files.json``, of an earlier version, is read through.
    """
    directory = Path(directory).absolute()
    for step in sorted((int(p.name) for p in directory.glob("*") if p.name.isdigit() and p.is_dir()), reverse=True):
        folder = directory / str(step)
        if not ocp.utils.is_checkpoint_finalized(folder):
            why = "unfinished"
        else:
            why = integrity.damage(folder) if integrity.recorded(folder) else _unreadable(folder)
        if not why:
            return
        yield step, why, integrity.set_aside(folder)


def _unreadable(folder: Path) -> str:
    """Why not every value of a saved step can be read; empty if it can."""
    root = folder / ITEM
    try:
        with _readable(folder):
            tree = _tree_metadata(root)
            for name in _named(tree.tree)[0]:
                array = _open(root, name, tree.use_zarr3, _read_context(CACHE))
                for box in boxes(array.shape, SLICE, array.chunk_layout.read_chunk.shape):
                    array[box].read().result()
    except ValueError as error:
        return str(error)
    return ""


def _named(tree: Any) -> tuple[list[str], list[Any], Any]:
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    return names, [leaf for _, leaf in paths], structure


class Saved:
    """The model of one saved step as a source (``average.Source``): read box by box, whatever mesh it was saved from.

    ``path`` is a folder of steps (``step``, or the newest complete one), one step, or a checkpoint without steps. Of a
    training state it is the averaged model where there is one (``averaged``), else the model; of any other tree
    everything, by the names of ``tree.named_weights``. ``chunks`` are the shapes the tensors were stored in: the least
    that can be read at a time. Raises ``FileNotFoundError`` or ``ValueError`` naming the folder.
    """

    def __init__(self, path: str | Path, step: int | None = None):
        self.path = _step_folder(Path(path), step)
        self.files = [self.path]
        root = self.path / ITEM if (self.path / ITEM).is_dir() else self.path
        with _readable(self.path):
            tree = _tree_metadata(root)
            self.metadata: dict[str, Any] = dict(tree.custom_metadata or {})
            leaves = dict(zip(*_named(tree.tree)[:2], strict=True))
            prefix = _model_prefix(list(leaves))
            stored = {n.removeprefix(prefix).removesuffix(VALUE): n for n in leaves if n.startswith(prefix)}
            self.averaged = prefix == AVERAGE
            self.chunks = {name: tuple(leaves[leaf].storage.chunk_shape) for name, leaf in stored.items()}
            # Boxes of one chunk follow each other: it is decoded once if it stays, however large it was written.
            largest = max(math.prod(self.chunks[n]) * leaves[leaf].dtype.itemsize for n, leaf in stored.items())
            context = _read_context(max(largest, CACHE))
            self._arrays = {name: _open(root, leaf, tree.use_zarr3, context) for name, leaf in stored.items()}
        self.shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype.numpy_dtype) for name, x in self._arrays.items()}

    def read(self, name: str, rows: Box) -> np.ndarray:
        """One box of a tensor."""
        with _readable(self.path):
            return np.asarray(self._arrays[name][rows].read().result())

    def into(self, like: Model) -> Model:
        """The weights in place of those of ``like``, with its dtypes and placement; a device reads what it holds.

        Raises ``ValueError`` naming the folder and a tensor that is missing, unexpected or of another shape.
        """
        expected = named_weights(like)
        check_weights(expected, self.shapes, str(self.path))

        def placed(name: str, old: jax.Array) -> jax.Array:
            read = lambda index: self.read(name, index).astype(old.dtype)  # noqa: E731
            return jax.make_array_from_callback(old.shape, old.sharding, read)

        return with_weights(like, {name: placed(name, old) for name, old in expected.items()}, source=str(self.path))


def _step_folder(path: Path, step: int | None) -> Path:
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such checkpoint folder")
    if (path / ITEM).is_dir() or (path / "_METADATA").is_file():
        if not ocp.utils.is_checkpoint_finalized(path.absolute()):
            raise ValueError(f"{path}: an unfinished checkpoint")
        return path
    steps = [p for p in path.iterdir() if p.name.isdigit() and ocp.utils.is_checkpoint_finalized(p.absolute())]
    if not steps:
        raise FileNotFoundError(f"{path}: holds no complete checkpoint")
    found = {int(p.name): p for p in steps}
    if step is not None and step not in found:
        raise ValueError(f"{path}: holds no step {step}; it has {', '.join(map(str, sorted(found)))}")
    return found[max(found) if step is None else step]


def _tree_metadata(root: Path) -> Any:
    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of metadata that is one folder up
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        found = reader.metadata(root.absolute()).item_metadata
    if found is None:  # Orbax logs why, and goes on
        raise ValueError("no tree of arrays in it")
    return found


def _model_prefix(saved: Sequence[str]) -> str:
    """What the names of the model's leaves begin with: nothing unless the tree is a training state."""
    if "step" not in saved or not any(name.startswith(MODEL) for name in saved):
        return ""
    return AVERAGE if any(name.startswith(AVERAGE) for name in saved) else MODEL


def _read_context(cache: int) -> Any:
    return ts.Context(
        {
            "cache_pool": {"total_bytes_limit": cache},
            "cache_pool#ocdbt": {"total_bytes_limit": 1 << 26},
            "data_copy_concurrency": {"limit": 2},  # chunks decoded at a time
            "file_io_concurrency": {"limit": 4},
        }
    )


def _open(root: Path, leaf: str, zarr3: bool, context: Any) -> Any:
    root = root.absolute()
    ocdbt = type_handlers.is_ocdbt_checkpoint(root)
    info = type_handlers.ParamInfo(
        name=leaf,
        parent_dir=root,  # pyright: ignore[reportArgumentType]  (any path with a `/` will do)
        is_ocdbt_checkpoint=ocdbt,
        use_zarr3=zarr3,
        ts_context=context,
    )
    return ts.open(ts.Spec(type_handlers.get_json_tspec_read(info, ocdbt)), open=True, context=context).result()


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What TensorStore and Orbax raise over damaged files, as one line naming the checkpoint."""
    try:
        yield
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path}: not a readable checkpoint ({' '.join(str(error).split())[:300]})") from None
