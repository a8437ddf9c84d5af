"""One part of ours under its published names: the plan of its tensors, and each of them as row blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike

from aqaa_jax.config import SystemConfig
from aqaa_jax.convert import flow, hift, layout, paraformer, s3, step1
from aqaa_jax.convert.layout import Entry, Index
from aqaa_jax.convert.part_source import PartSource

_CHUNK = 1 << 26  # bytes of a table read at a time
Pieces = list[tuple[Entry, Index]]


class Published(NamedTuple):
    """What writers of files take: name -> shape and dtype, and the row blocks of a name."""

    plan: Mapping[str, jax.ShapeDtypeStruct]
    read: Callable[[str], Iterable[np.ndarray]]


def published_part(part: str, config: SystemConfig, source: PartSource, dtype: DTypeLike) -> Published:
    """The published tensors of ``part`` in the published order, cast to ``dtype``, read from ``source`` when asked for.

    At most one published tensor is in memory at a time. HiFT's come with their weight norm, the semantic tokenizer's
    with the positions that are a formula here.
    """
    dtype = np.dtype(dtype)
    pieces = _order(part, config, layout.by_published(_entries(part, config)))
    exact = step1.exact(config.decoder) if part == "decoder" else ()
    dtypes = {name: np.dtype(np.float32) if name in exact else dtype for name in pieces}
    plan = {name: jax.ShapeDtypeStruct(_shape(made_of, source), dtypes[name]) for name, made_of in pieces.items()}

    def read(name: str) -> Iterator[np.ndarray]:
        yield from _blocks(pieces[name], source, dtypes[name])

    if part == "hift":
        return _with_weight_norm(plan, read)
    if part == "semantic":
        table = s3.positions(config.tokenizer.semantic)
        positions = jax.ShapeDtypeStruct(table.shape, table.dtype)
        name = s3.initializers(config.tokenizer.semantic)[s3.POSITIONS]
        return Published(plan | {name: positions}, lambda n: [table] if n == name else read(n))
    return Published(plan, read)


def file_weights(config: SystemConfig, source: PartSource) -> list[np.ndarray]:
    """CMVN shift, CMVN scale and codebook of the linguistic tokenizer, float32: the weights in files of their own."""
    pieces = layout.by_published(paraformer.entries(config.tokenizer.linguistic))
    return [source.read(pieces[name][0][0].ours).astype(np.float32) for name in paraformer.FILE_WEIGHTS]


def _entries(part: str, config: SystemConfig) -> Iterator[Entry]:
    tables: dict[str, tuple[Callable[[Any], Iterator[Entry]], Any]] = {
        "linguistic": (paraformer.entries, config.tokenizer.linguistic),
        "semantic": (s3.onnx_entries, config.tokenizer.semantic),
        "decoder": (step1.entries, config.decoder),
        "flow": (flow.entries, config.vocoder.flow),
        "hift": (hift.entries, config.vocoder.hift),
    }
    entries, values = tables[part]
    return entries(values)


def _order(part: str, config: SystemConfig, pieces: dict[str, Pieces]) -> dict[str, Pieces]:
    if part == "decoder":
        return {name: pieces[name] for name in step1.published_shapes(config.decoder)}
    return {name: made_of for name, made_of in pieces.items() if name not in paraformer.FILE_WEIGHTS}


def _shape(made_of: Pieces, source: PartSource) -> tuple[int, ...]:
    entry, index = made_of[0]
    blank = np.broadcast_to(np.int8(0), source.shape(entry.ours, index))
    rows, *rest = layout.to_published(blank, entry).shape or (None,)
    return () if rows is None else (rows * entry.pieces, *rest)


def _blocks(made_of: Pieces, source: PartSource, dtype: np.dtype) -> Iterator[np.ndarray]:
    for entry, index in made_of:
        shape = source.shape(entry.ours, index)
        if entry.kind != "plain" or len(shape) < 2:
            yield from layout.row_blocks(layout.to_published(source.read(entry.ours, index), entry), dtype)
            continue
        step = max(1, _CHUNK // (4 * int(np.prod(shape[1:]))))
        for start in range(0, shape[0], step):
            yield source.read(entry.ours, index, slice(start, min(start + step, shape[0]))).astype(dtype, copy=False)


def _with_weight_norm(
    plan: Mapping[str, jax.ShapeDtypeStruct], read: Callable[[str], Iterable[np.ndarray]]
) -> Published:
    folded: dict[str, str] = {}  # published name -> the folded tensor it comes from
    out: dict[str, jax.ShapeDtypeStruct] = {}
    for name, tensor in plan.items():
        for own, value in hift.unfold_weight_norm(name, np.broadcast_to(np.float32(0), tensor.shape)).items():
            folded[own], out[own] = name, jax.ShapeDtypeStruct(value.shape, tensor.dtype)

    def unfolded(name: str) -> list[np.ndarray]:
        whole = np.concatenate([np.atleast_1d(block) for block in read(folded[name])])
        return [hift.unfold_weight_norm(folded[name], whole)[name]]

    return Published(out, unfolded)
