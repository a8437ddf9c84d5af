"""Training checkpoints through Orbax: asynchronous, atomic, the newest few kept. Only this file knows Orbax."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

Tree = TypeVar("Tree")


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
        self._manager.save(step, args=ocp.args.StandardSave(dict(zip(names, leaves, strict=True))), force=True)

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
