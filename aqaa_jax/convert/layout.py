"""Tables between published PyTorch names and layouts and ours, read in both directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

# Order of our axes in the published array, by kind; "plain" arrays are the same on both sides.
_AXES = {"linear": (1, 0), "conv": (2, 1, 0), "conv_transpose": (2, 0, 1)}


class Entry(NamedTuple):
    """One of our weights and its published tensors: one name, or one per layer of a stack (then stacked)."""

    ours: str
    published: str | tuple[str, ...]
    kind: str = "plain"  # plain | linear | conv | conv_transpose


def read(entries: Iterable[Entry], state: Mapping[str, np.ndarray], *, source: str) -> dict[str, np.ndarray]:
    """Our weights from a published state dict.

    Raises ``ValueError`` naming ``source`` and the first published tensor that is missing or left over.
    """
    out, used = {}, set()
    for ours, published, kind in entries:
        names = (published,) if isinstance(published, str) else published
        for name in names:
            if name not in state:
                raise ValueError(f"{source}: published tensor {name!r} is missing")
        used.update(names)
        arrays = [_to_ours(np.asarray(state[name]), kind) for name in names]
        out[ours] = arrays[0] if isinstance(published, str) else np.stack(arrays)
    unexpected = sorted(set(state) - used)
    if unexpected:
        raise ValueError(f"{source}: unexpected published tensor {unexpected[0]!r} ({len(unexpected)} in all)")
    return out


def write(entries: Iterable[Entry], weights: Mapping[str, np.ndarray], *, source: str) -> dict[str, np.ndarray]:
    """The published state dict of our weights: the exact inverse of ``read``."""
    out, used = {}, set()
    for ours, published, kind in entries:
        if ours not in weights:
            raise ValueError(f"{source}: weight {ours!r} is missing")
        used.add(ours)
        value = np.asarray(weights[ours])
        if isinstance(published, str):
            out[published] = _to_published(value, kind)
            continue
        if len(value) != len(published):
            raise ValueError(f"{source}: weight {ours!r} has {len(value)} layers, expected {len(published)}")
        for name, layer in zip(published, value, strict=True):
            out[name] = _to_published(layer, kind)
    unexpected = sorted(set(weights) - used)
    if unexpected:
        raise ValueError(f"{source}: unexpected weight {unexpected[0]!r} ({len(unexpected)} in all)")
    return out


def _to_ours(array: np.ndarray, kind: str) -> np.ndarray:
    return array if kind == "plain" else array.transpose(_AXES[kind])


def _to_published(array: np.ndarray, kind: str) -> np.ndarray:
    return array if kind == "plain" else array.transpose(np.argsort(_AXES[kind]))
