"""Tables between published PyTorch names and layouts and ours, read in both directions, whole or piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from aqaa_jax.checkpoint.tree import layer_name

# Order of our axes in the published array, by kind; "plain" arrays are the same on both sides.
_AXES = {"linear": (1, 0), "conv": (2, 1, 0), "conv_transpose": (2, 0, 1)}
_BLOCK = 1 << 26  # bytes of a contiguous copy made at a time


Names = str | tuple["Names", ...]
Index = tuple[int, ...]  # the place in a stack: nothing, a layer, or a layer and an expert


class Entry(NamedTuple):
    """One of our weights and its published tensors: one name, or one per layer of a stack (then stacked).

    A layer of experts is a stack too: then ``published`` is a tuple of tuples, and ours has two leading axes.

    ``kind``: ``plain``, ``linear``, ``conv``, ``conv_transpose``; ``to_heads`` (N H, D) -> (D, N, H) and ``from_heads``
    (D, N H) -> (N, H, D) with ``head_dim`` H; ``depthwise`` (D, 1, K) -> (K, D). With ``pieces`` above 1 ours is one of
    that many equal pieces of the published rows.
    """

    ours: str
    published: Names
    kind: str = "plain"
    head_dim: int = 0
    piece: int = 0
    pieces: int = 1

    @property
    def stack(self) -> tuple[int, ...]:
        """Sizes of the leading axes of ours that are none of a published tensor."""
        sizes, inner = [], self.published
        while not isinstance(inner, str):
            sizes.append(len(inner))
            inner = inner[0]
        return tuple(sizes)

    @property
    def names(self) -> tuple[str, ...]:
        """The published names in the order of the elements of the stack, if ours is one."""
        return tuple(_flat(self.published))


def read(entries: Iterable[Entry], state: Mapping[str, np.ndarray], *, source: str) -> dict[str, np.ndarray]:
    """Our weights from a published state dict.

    Raises ``ValueError`` naming ``source`` and the first published tensor that is missing or left over.
    """
    out, used = {}, set()
    for entry in entries:
        for name in entry.names:
            if name not in state:
                raise ValueError(f"{source}: published tensor {name!r} is missing")
        used.update(entry.names)
        arrays = [to_ours(np.asarray(state[name]), entry) for name in entry.names]
        out[entry.ours] = np.stack(arrays).reshape(*entry.stack, *arrays[0].shape)
    unexpected = sorted(set(state) - used)
    if unexpected:
        raise ValueError(f"{source}: unexpected published tensor {unexpected[0]!r} ({len(unexpected)} in all)")
    return out


def write(entries: Iterable[Entry], weights: Mapping[str, np.ndarray], *, source: str) -> dict[str, np.ndarray]:
    """The published state dict of our weights: the exact inverse of ``read``."""
    out: dict[str, np.ndarray] = {}
    split: dict[str, list[np.ndarray]] = {}
    used = set()
    for entry in entries:
        ours = entry.ours
        if ours not in weights:
            raise ValueError(f"{source}: weight {ours!r} is missing")
        used.add(ours)
        value, stack = np.asarray(weights[ours]), entry.stack
        if value.shape[: len(stack)] != stack:
            raise ValueError(f"{source}: weight {ours!r} is a stack of {value.shape[: len(stack)]}, expected {stack}")
        layers = value.reshape(len(entry.names), *value.shape[len(stack) :])
        for name, layer in zip(entry.names, layers, strict=True):
            if entry.pieces == 1:
                out[name] = to_published(layer, entry)
                continue
            split.setdefault(name, []).append(to_published(layer, entry))
            if len(split[name]) == entry.pieces:
                out[name] = np.concatenate(split.pop(name))
    unexpected = sorted(set(weights) - used)
    if unexpected:
        raise ValueError(f"{source}: unexpected weight {unexpected[0]!r} ({len(unexpected)} in all)")
    return out


def per_layer(entries: Iterable[Entry]) -> Iterator[Entry]:
    """``entries`` with stacks taken apart, layer by layer, under the names that shards have (``tree.layer_name``)."""
    stacked: list[Entry] = []
    for entry in [*entries, Entry("", "")]:
        if not isinstance(entry.published, str):
            stacked.append(entry)
            continue
        for i in range(max((e.stack[0] for e in stacked), default=0)):
            yield from (e._replace(ours=layer_name(e.ours, i), published=e.published[i]) for e in stacked)
        stacked = []
        if entry.ours:
            yield entry


def by_published(entries: Iterable[Entry]) -> dict[str, list[tuple[Entry, Index]]]:
    """Published name -> what it is made of: entries (several where ours are pieces of it) with the place in a stack."""
    out: dict[str, list[tuple[Entry, Index]]] = {}
    for entry in entries:
        for index, name in zip(np.ndindex(entry.stack), entry.names, strict=True):
            out.setdefault(name, []).append((entry, index))
    return out


def blocks(entry: Entry, load: Callable[[str], np.ndarray], dtype: np.dtype) -> Iterator[np.ndarray]:
    """Consecutive contiguous row blocks of one of our weights, holding one published tensor at a time.

    ``load`` gives a published tensor by name. The blocks are what ``checkpoint.shards.write_shards`` takes.
    """
    for name in entry.names:
        array = to_ours(load(name), entry)
        array = array if isinstance(entry.published, str) else array[None]
        yield from row_blocks(array, dtype)


def row_blocks(array: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Consecutive contiguous row blocks of any array, a view too, cast to ``dtype``; little is copied at a time."""
    if array.ndim == 0:
        yield array.astype(dtype)
        return
    rows = max(1, _BLOCK * len(array) // max(array.nbytes, 1))
    raw = array.view(np.uint16) if array.dtype.itemsize == 2 else array  # NumPy copies its own dtypes faster
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(raw[start : start + rows]).view(array.dtype).astype(dtype, copy=False)


def to_ours(array: np.ndarray, entry: Entry) -> np.ndarray:
    """One published tensor in our layout (a view)."""
    kind, head_dim = entry.kind, entry.head_dim
    if entry.pieces > 1:
        array = np.split(array, entry.pieces)[entry.piece]
    if kind == "to_heads":
        return array.T.reshape(array.shape[1], -1, head_dim)
    if kind == "from_heads":
        return array.T.reshape(-1, head_dim, array.shape[0])
    if kind == "depthwise":
        return array[:, 0].T
    return array if kind == "plain" else array.transpose(_AXES[kind])


def to_published(array: np.ndarray, entry: Entry) -> np.ndarray:
    """One of our weights, of one layer, in the published layout (a view); of a split tensor, its piece."""
    kind = entry.kind
    if kind == "to_heads":
        return array.reshape(array.shape[0], -1).T
    if kind == "from_heads":
        return array.reshape(-1, array.shape[-1]).T
    if kind == "depthwise":
        return array.T[:, None]
    return array if kind == "plain" else array.transpose(np.argsort(_AXES[kind]))


def _flat(names: Names) -> Iterator[str]:
    if isinstance(names, str):
        yield names
        return
    for inner in names:
        yield from _flat(inner)
