"""A dense model as a mixture of experts that computes the same: every expert begins as a copy of the dense layer
(Komatsuzaki et al. 2022, arXiv 2212.05055)."""

from __future__ import annotations

import dataclasses
import re
import shutil
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aqaa_jax import atomic
from aqaa_jax.checkpoint import folder, hashes
from aqaa_jax.checkpoint.average import SLICE, Box, Source, is_float, runs
from aqaa_jax.checkpoint.header import nbytes
from aqaa_jax.checkpoint.shards import SUFFIX, ShardReader, check_space, write_one, write_shards
from aqaa_jax.config import ExpertsConfig
from aqaa_jax.version import __version__

ROUTER_STD = 0.02
# A matrix of the dense layer: of all layers in one tensor, or of one layer.
_MATRIX = re.compile(r"blocks\.(?P<layer>\d+\.)?mlp\.(?P<name>gate|up|down)")
Watch = Callable[[str, int], Callable[[int], None]]


class Upcycled:
    """A dense decoder seen as one with experts, as a source (``checkpoint/average.py``).

    Every expert is the dense layer, each weight of it times 1 + ``noise`` * a normal number; the routers are random,
    their biases zero. What is read does not depend on how it is cut into boxes. Raises ``ValueError`` if the source has
    no dense layers, or stores them as int8.
    """

    def __init__(self, dense: Source, config: ExpertsConfig, *, seed: int = 0, noise: float = 0.0):
        self._dense, self._config, self._seed, self._noise = dense, config, seed, noise
        self._axis: dict[str, int] = {}  # name of a matrix -> its new axis
        shapes: dict[str, jax.ShapeDtypeStruct] = {}
        for name, x in dense.shapes.items():
            found = _MATRIX.fullmatch(name)
            shapes[name] = x
            if not found:
                continue
            if not is_float(x.dtype):
                raise ValueError(f"tensor {name!r} has dtype {x.dtype}, expected float weights to make experts of")
            axis = self._axis[name] = 0 if found["layer"] else 1
            shapes[name] = jax.ShapeDtypeStruct((*x.shape[:axis], config.experts, *x.shape[axis:]), x.dtype)
            if found["name"] == "gate":
                stem = name.removesuffix("gate")
                shapes[f"{stem}router"] = jax.ShapeDtypeStruct((*x.shape[:-1], config.experts), x.dtype)
                if config.bias_rate:
                    shapes[f"{stem}bias"] = jax.ShapeDtypeStruct((*x.shape[:axis], config.experts), np.float32)
        if not self._axis:
            raise ValueError("no tensor blocks.mlp.gate; expected a dense decoder")
        self.shapes = shapes

    def read(self, name: str, rows: Box) -> np.ndarray:
        """One box."""
        if name in self._axis:
            return self._experts(name, self._axis[name], rows)
        if name in self._dense.shapes:
            return self._dense.read(name, rows)
        whole = self.shapes[name]
        shape = tuple(r.stop - r.start for r in rows)
        if name.endswith(".bias"):
            return np.zeros(shape, whole.dtype)
        out = np.empty(shape, whole.dtype)
        stacked, (first, last) = whole.shape[:-2], rows[-2:]
        for at in np.ndindex(shape[: len(stacked)]):
            place = [r.start + i for r, i in zip(rows, at, strict=False)]
            matrix = self._normal(name, place, whole.shape[-2:])[first, last]
            out[at] = (ROUTER_STD * matrix).astype(whole.dtype)
        return out

    def _experts(self, name: str, axis: int, rows: Box) -> np.ndarray:
        experts = rows[axis]
        block = np.asarray(self._dense.read(name, (*rows[:axis], *rows[axis + 1 :])))
        block = np.repeat(np.expand_dims(block, axis), experts.stop - experts.start, axis=axis)
        if self._noise:
            width = self.shapes[name].shape[-1]
            for at in np.ndindex(block.shape[:-1]):
                place = [r.start + i for r, i in zip(rows, at, strict=False)]
                factor = 1 + self._noise * self._normal(name, place, (width,))[rows[-1]]
                block[at] = (block[at].astype(np.float32) * factor).astype(block.dtype)
        return block

    def _normal(self, name: str, place: list[int], shape: tuple[int, ...]) -> np.ndarray:
        seed = [self._seed, zlib.crc32(name.encode()), *place]
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def upcycle(
    dense: str | Path,
    output: str | Path,
    config: ExpertsConfig,
    *,
    seed: int = 0,
    noise: float = 0.0,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Write the model folder ``output``: that of ``dense`` with experts in its decoder; returns what is stored of it.

    The experts are as wide as the dense layer, whatever ``config.mlp``. With ``noise`` 0 the new model computes what
    the old one does, whatever its routers choose. Raises ``ValueError`` or ``FileNotFoundError`` before anything is
    written if that cannot be (a shared expert, weights that do not add up to 1), or a folder is not what is expected.
    """
    dense, output = Path(dense), Path(output)
    system = folder.read_config(dense)
    if system.decoder.experts is not None:
        raise ValueError(f"{dense}: has {system.decoder.experts.experts} experts already; expected a dense model")
    if config.shared_mlp or not config.normalise:
        raise ValueError(
            f"shared_mlp {config.shared_mlp}, normalise {config.normalise}: expected 0 and true, else the new model "
            f"would compute something else than the dense one"
        )
    if (output / folder.CONFIG).exists():
        raise ValueError(f"{output}: a model folder already; remove it or choose another")
    config = dataclasses.replace(config, mlp=system.decoder.mlp)
    reader = ShardReader(dense, "decoder")
    experts = Upcycled(reader, config, seed=seed, noise=noise)
    size = sum(map(nbytes, experts.shapes.values()))
    kept = [dense / folder.TEXT_MODEL, *(p for p in [dense / folder.SPEAKER_MODEL] if p.is_file())]
    kept += [file for part in folder.PARTS if part != "decoder" for file in _files(dense, part)]
    check_space(output, size + sum(file.stat().st_size for file in kept))
    tell = (watch or (lambda what, total: lambda done: None))("making experts", size)
    about = {
        "version": __version__,
        "dense": {"path": str(dense), "sha256": {file.name: hashes.sha256(file) for file in reader.files}},
        "experts": dataclasses.asdict(config),
        "seed": seed,
        "noise": noise,
    }
    for file in kept:
        with atomic.written(output / file.name) as part:
            shutil.copyfile(file, part)
    largest = None if len(reader.files) == 1 else max(file.stat().st_size for file in reader.files)
    write = write_one if largest is None else partial(write_shards, max_bytes=largest)
    write(
        output,
        experts.shapes,
        lambda name: runs(experts, name, SLICE),
        prefix="decoder",
        progress=tell,
        source=f"upcycle {about['dense']['sha256']} {config} {seed} {noise}",
        metadata={"part": "decoder"},
    )
    decoder = dataclasses.replace(system.decoder, experts=config)
    folder.write_config(output, dataclasses.replace(system, decoder=decoder), {"upcycle": about})
    return about


def _files(directory: Path, part: str) -> list[Path]:
    found = sorted(directory.glob(f"{part}{SUFFIX}")) + sorted(directory.glob(f"{part}[-.]*"))
    if not found:
        raise FileNotFoundError(f"{directory}: no weights of {part!r}, so it is not a (whole) model folder")
    return list(dict.fromkeys(found))
