"""Training checkpoints through Orbax: asynchronous, atomic, the newest few kept. Only this file knows Orbax."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
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


class SavedModel:
    """The model in a saved training state, read weight by weight without the objects it was made of.

    Its weights have the names of ``checkpoint.tree``; it is the averaged model where the run kept one (``average``),
    as ``training.loop.train`` returns it. Raises ``FileNotFoundError`` or ``ValueError`` naming the folder if there is
    no (such) complete step, or no model in it.
    """

    def __init__(self, directory: str | Path, step: int | None = None):
        logging.getLogger("absl").setLevel(logging.WARNING)
        options = ocp.CheckpointManagerOptions(read_only=True)
        handlers = ocp.PyTreeCheckpointHandler()
        self._manager = ocp.CheckpointManager(Path(directory).absolute(), options=options, item_handlers=handlers)
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise FileNotFoundError(f"{directory}: holds no complete checkpoint")
        if step is not None and step not in steps:
            raise ValueError(f"{directory}: holds no step {step}; it has {', '.join(map(str, steps))}")
        self.step = steps[-1] if step is None else step
        saved = dict(self._manager.item_metadata(self.step).tree)
        self.average = any(name.startswith("ema.") for name in saved)
        prefix = "ema." if self.average else "model."
        self._names = {_weight_name(name, prefix): name for name in saved if name.startswith(prefix)}
        if not self._names:
            raise ValueError(f"{directory}: step {self.step} holds no model")
        self.shapes = {
            ours: jax.ShapeDtypeStruct(saved[name].shape, saved[name].dtype) for ours, name in self._names.items()
        }

    def read(self, name: str) -> np.ndarray:
        """One weight, whole, on the host; nothing else of the checkpoint is read."""
        saved = self._names[name]
        host = ocp.RestoreArgs(restore_type=np.ndarray)
        args = ocp.args.PyTreeRestore(item={saved: 0}, restore_args={saved: host}, partial_restore=True)
        return np.asarray(self._manager.restore(self.step, args=args)[saved])

    def close(self) -> None:
        self._manager.close()


def _weight_name(saved: str, prefix: str) -> str:
    return saved.removeprefix(prefix).removesuffix(".value")  # the last part is the variable's field
