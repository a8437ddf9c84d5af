"""A checkpoint written box by box (``average``): what is larger than memory becomes a saved step.

TensorStore is underneath: Orbax itself saves whole arrays.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import type_handlers

from aqaa_jax.checkpoint.average import SLICE, Source, boxes, cell
from aqaa_jax.checkpoint.store import TEMPORARY, VALUE


def check_new(directory: str | Path) -> None:
    """Raise ``ValueError`` if ``directory`` holds anything but what an interrupted save left."""
    path = Path(directory)
    if path.exists() and not (path.is_dir() and all(TEMPORARY in p.name for p in path.iterdir())):
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
