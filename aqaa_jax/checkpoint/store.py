"""Training checkpoints through Orbax: asynchronous, atomic, the newest few kept. Only this file knows Orbax.

``Saved`` and ``write_slices`` read and write the same folders box by box (``average``), with TensorStore underneath:
Orbax itself restores and saves whole arrays.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import type_handlers

from aqaa_jax.checkpoint.average import SLICE, Box, Source, boxes, cell

Tree = TypeVar("Tree")
ITEM = "default"  # the folder of a step that holds the tree
MODEL, AVERAGE = "model.", "ema."  # begin the names of a training state's model and of its average
VALUE = ".value"  # ends the names of a module's leaves
CHUNK = 1 << 26  # bytes of a stored chunk at most: the least that can be read of a tensor
_TEMPORARY = ".orbax-checkpoint-tmp"  # in the names of unfinished steps
CACHE = CHUNK  # bytes of decoded chunks kept while boxes are read


class Store:
    """Checkpoints of one run under ``directory``; any pytree of arrays goes in and comes out."""

    def __init__(self, directory: str | Path, *, keep: int = 2):
        logging.getLogger("absl").setLevel(logging.WARNING)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(Path(directory).absolute(), options=options)

    def latest(self) -> int | None:
        """The newest complete step, or ``None``."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any) -> None:
        """Start saving ``tree``; returns once the arrays may be changed, the write goes on behind."""
        names, leaves, _ = _named(tree)
        chunked = {name: ocp.SaveArgs(chunk_byte_size=CHUNK) for name in names}
        saved = ocp.args.StandardSave(dict(zip(names, leaves, strict=True)), save_args=chunked)
        self._manager.save(step, args=saved, force=True)

    def restore(self, step: int, like: Tree) -> Tree:
        """The tree saved at ``step`` with the structure, dtypes and placement of ``like``."""
        names, leaves, structure = _named(like)
        abstract = {
            n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for n, x in zip(names, leaves, strict=True)
        }
        saved = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        return jax.tree_util.tree_unflatten(structure, [saved[n] for n in names])

    def close(self) -> None:
        """Wait for a save in flight and release the manager."""
        self._manager.wait_until_finished()
        self._manager.close()


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


def check_new(directory: str | Path) -> None:
    """Raise ``ValueError`` if ``directory`` holds anything but what an interrupted save left."""
    path = Path(directory)
    if path.exists() and not (path.is_dir() and all(_TEMPORARY in p.name for p in path.iterdir())):
        raise ValueError(f"{directory}: exists and is not an empty folder; remove it or choose another")


def write_slices(
    directory: str | Path,
    source: Source,
    *,
    chunks: Mapping[str, Sequence[int]] | None = None,
    limit: int = SLICE,
    metadata: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Save ``source`` as step 0 of a new ``directory``, at most ``limit`` elements in memory at a time.

    ``Store(directory).restore(0, model)`` reads it, on any mesh. Boxes follow ``chunks`` (name -> shape), best those of
    the input. The step has its name only when it is whole; after an error nothing is left. One process writes.
    ``metadata`` is what ``Saved.metadata`` will be. Raises ``ValueError`` as ``check_new`` does.
    """
    directory = Path(directory).absolute()
    check_new(directory)
    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of a handler that knows slices only
    handler = ocp.PyTreeCheckpointHandler(
        type_handler_registry=type_handlers.create_type_handler_registry((_Sliced, _SliceHandler(progress)))
    )
    tree = {
        name + VALUE: _Sliced(source, name, tuple(chunks[name] if chunks and name in chunks else x.shape), limit)
        for name, x in source.shapes.items()
    }
    options = ocp.CheckpointManagerOptions(create=True, cleanup_tmp_directories=True, enable_async_checkpointing=False)
    try:
        with ocp.CheckpointManager(directory, options=options, item_handlers=handler) as manager:
            manager.save(0, args=ocp.args.PyTreeSave(tree, custom_metadata=dict(metadata or {})), force=True)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


@dataclass(frozen=True)
class _Sliced:
    """A tensor to be written box by box, all boxes of one ``chunk`` before those of the next."""

    source: Source
    name: str
    chunk: tuple[int, ...]
    limit: int


class _SliceHandler(type_handlers.TypeHandler):
    """Teaches Orbax to save ``_Sliced`` leaves; they are restored like any array."""

    def __init__(self, progress: Callable[[int], None] | None):
        self._tell = progress or (lambda done: None)

    def typestr(self) -> str:
        return "np.ndarray"

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> list[Any]:
        for leaf, info in zip(values, infos, strict=True):
            tensor = leaf.source.shapes[leaf.name]
            stored = tuple(max(size, 1) for size in cell(tensor.shape, leaf.limit, leaf.chunk))
            spec = type_handlers.get_json_tspec_write(
                info, True, tuple(tensor.shape), stored, np.dtype(tensor.dtype), process_index=0
            )
            array = await ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context)
            for box in boxes(tensor.shape, leaf.limit, leaf.chunk):
                block = leaf.source.read(leaf.name, box)
                await array[box].write(block)
                self._tell(block.nbytes)
        return []

    async def metadata(self, infos: Any) -> Any:
        raise NotImplementedError("this handler writes only")

    async def deserialize(self, infos: Any, args: Any = None) -> Any:
        raise NotImplementedError("this handler writes only")


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
