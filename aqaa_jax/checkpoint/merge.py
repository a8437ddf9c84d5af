"""Checkpoints in, their weighted mean out: what is averaged with what, and what the result says of itself.

The AQAA model is such a mean: 5 SFT-1 : 5 SFT-2 : 1 DPO (paper, section 3.4, Eq. 3).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aqaa_jax import atomic
from aqaa_jax.atomic import read_json
from aqaa_jax.checkpoint import folder, hashes, slices, store
from aqaa_jax.checkpoint.average import SLICE, Input, Int8Tables, Mean, Source, Unpacked, runs
from aqaa_jax.checkpoint.header import nbytes
from aqaa_jax.checkpoint.shards import SUFFIX, ShardReader, check_space, write_one, write_shards
from aqaa_jax.config import SystemConfig, to_dict
from aqaa_jax.version import __version__

# What is about to be done and its bytes -> a function that is told the bytes done since its last call.
Watch = Callable[[str, int], Callable[[int], None]]
MODEL, FILE, ORBAX = "model folder", "safetensors file", "Orbax checkpoint"
# How a model is run and how its training was set up; the result has the values of the first input. All else is what the
# weights mean, and has to agree.
FREE = (
    "name",
    "system_prompt",
    "sampling",
    "decoder.dtype",
    "decoder.param_dtype",
    "decoder.max_length",
    "decoder.remat",
    "decoder.scan",
    "decoder.unroll",
    "decoder.experts.balance_weight",
    "decoder.experts.router_z_weight",
    "vocoder.flow.temperature",
    "vocoder.flow.training_noise",
    "vocoder.flow.steps",
    "vocoder.flow.guidance",
    "vocoder.flow.condition_dropout",
    "vocoder.flow.prompt_probability",
    "vocoder.flow.prompt_fraction",
)
CARD = """# {name}

A weighted mean of {many} models, made by aqaa_jax {version} (`aqaa merge`):

{lines}

`config.json` holds their hashes and where each of them came from.
"""


def merge(
    inputs: Sequence[tuple[str | Path, float]],
    output: str | Path,
    *,
    dtype: Any = None,
    accumulate: Any = np.float32,
    limit: int = SLICE,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Write the mean of ``inputs`` (path, weight) to ``output``; returns the provenance that is stored in it.

    Model folders give a model folder: parts whose files are the same in all inputs stay as they are, the others are
    averaged, tables of int8 rows as the numbers they stand for. Everything else (``store.Saved`` folders, safetensors
    files, sets of shards) gives a safetensors file if ``output`` ends in ``.safetensors``, else an Orbax checkpoint.
    Float weights get ``dtype``, or keep that (and the int8 rows) of the first input with a weight above zero; if no
    other has one, the result is that input bit for bit. ``limit`` elements are worked on at a time. Raises
    ``ValueError`` or ``FileNotFoundError`` naming the input before anything is written; what is found later (see
    ``average.Mean``) leaves nothing that looks whole.
    """
    paths, weights = [Path(path) for path, _ in inputs], [weight for _, weight in inputs]
    if not paths:
        raise ValueError("nothing to merge; expected at least one checkpoint")
    kinds = [_kind(path) for path in paths]
    if MODEL in kinds and set(kinds) != {MODEL}:
        odd = next(path for path, kind in zip(paths, kinds, strict=True) if kind != MODEL)
        raise ValueError(
            f"{odd}: not a model folder, as others are; name a part of them, as in DIR/decoder.safetensors"
        )
    watch = watch or (lambda what, total: lambda done: None)
    task = _Task(paths, weights, Path(output), dtype, np.dtype(accumulate), limit, watch)
    if kinds[0] == MODEL:
        return task.folders()
    return task.tensors([store.Saved(p) if k == ORBAX else ShardReader(p) for p, k in zip(paths, kinds, strict=True)])


def _kind(path: Path) -> str:
    if path.suffix == SUFFIX:
        return FILE
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such checkpoint; expected a model folder, a run's checkpoints or weights")
    if (path / folder.CONFIG).is_file() and "system" in read_json(path / folder.CONFIG):
        return MODEL
    return FILE if any(path.glob(f"model*{SUFFIX}")) else ORBAX


def check_configs(paths: Sequence[Path], configs: Sequence[SystemConfig]) -> None:
    """Raise ``ValueError`` naming the first value outside of ``FREE`` that differs from the first model's."""
    first = _flat(to_dict(configs[0]))
    for path, config in zip(paths[1:], configs[1:], strict=True):
        for key, value in _flat(to_dict(config)).items():
            if first.get(key) != value and not any(key == free or key.startswith(f"{free}.") for free in FREE):
                raise ValueError(
                    f"{path / folder.CONFIG}: {key} is {value!r}, expected {first.get(key)!r} as in {paths[0]}"
                )


@dataclass(frozen=True)
class _Task:
    """One merge; what its steps share."""

    paths: Sequence[Path]
    weights: Sequence[float]
    output: Path
    dtype: Any
    accumulate: np.dtype
    limit: int
    watch: Watch

    @property
    def chosen(self) -> list[int]:
        """The inputs that weigh anything."""
        return [i for i, weight in enumerate(self.weights) if weight > 0]

    def tensors(self, sources: Sequence[store.Saved | ShardReader]) -> dict[str, Any]:
        """One set of tensors to a safetensors file or an Orbax checkpoint."""
        one_file = self.output.suffix == SUFFIX
        mean = self.mean(sources, self.paths, int8=one_file)
        if one_file:
            _check_new_file(self.output)
        else:
            slices.check_new(self.output)
        size = sum(map(nbytes, mean.shapes.values()))
        check_space(self.output.parent, size)
        saved = [source for source in sources if isinstance(source, store.Saved)]
        found = [source.metadata.get("merge") if isinstance(source, store.Saved) else None for source in sources]
        about = self.provenance(self.hash([source.files for source in sources]), found)
        tell = self.watch("averaging", size)
        if one_file:
            self.write(self.output, mean, {"merge": json.dumps(about)}, tell)
            return about
        # Boxes follow the chunks of an input, so that each of its chunks is read once.
        chunks, metadata = saved[0].chunks if saved else {}, {"merge": about}
        slices.write_slices(self.output, mean, chunks=chunks, limit=self.limit, metadata=metadata, progress=tell)
        return about

    def folders(self) -> dict[str, Any]:
        """Model folders to a model folder, ``config.json`` last."""
        if (self.output / folder.CONFIG).exists():
            raise ValueError(f"{self.output}: a model folder already; remove it or choose another")
        configs = [folder.read_config(path) for path in self.paths]
        check_configs(self.paths, configs)
        texts = _same_tokenizer(self.paths)
        readers = {part: [ShardReader(path, part) for path in self.paths] for part in folder.PARTS}
        means = {
            part: self.mean(sources, [path / f"{part}{SUFFIX}" for path in self.paths], int8=True)
            for part, sources in readers.items()
        }
        size = sum(nbytes(tensor) for mean in means.values() for tensor in mean.shapes.values())
        check_space(self.output, size)
        groups = [[*(file for part in readers.values() for file in part[i].files), t] for i, t in enumerate(texts)]
        about = self.provenance(
            self.hash(groups), [read_json(path / folder.CONFIG).get("provenance") for path in self.paths]
        )
        tell = self.watch("averaging", size)
        for part, mean in means.items():
            self.part(part, readers[part], mean, about, tell)
        for name, content in ((folder.TEXT_MODEL, texts[0].read_bytes()), ("README.md", self.card(configs[0]))):
            with atomic.written(self.output / name) as temporary:
                temporary.write_bytes(content)
        folder.write_config(self.output, configs[0], {"merge": about})
        return about

    def mean(self, sources: Sequence[Source], paths: Sequence[Path], *, int8: bool) -> Source:
        """The mean of one set of tensors; with ``int8``, tables stay int8 rows."""
        names = {name for source in sources for name in source.shapes}
        real = [Unpacked(source, names) for source in sources]
        inputs = [Input(str(p), w, source) for p, w, source in zip(paths, self.weights, real, strict=True)]
        mean = Mean(inputs, dtype=self.dtype, accumulate=self.accumulate)
        if not int8 or self.dtype is not None:
            return mean
        first, *others = self.chosen
        return Int8Tables(mean, real[first].tables) if others else sources[first]

    def part(
        self,
        part: str,
        readers: Sequence[ShardReader],
        mean: Source,
        about: Mapping[str, Any],
        tell: Callable[[int], None],
    ) -> None:
        """One part of a folder: as it is if it is the same in all inputs that weigh anything, else averaged."""
        first = readers[self.chosen[0]]
        stored = [[about["inputs"][i]["sha256"][file.name] for file in readers[i].files] for i in self.chosen]
        same = self.dtype is None and all(files == stored[0] for files in stored)
        brief = [{k: v for k, v in entry.items() if k != "provenance"} for entry in about["inputs"]]
        metadata = {"part": part, "merge": json.dumps({**about, "inputs": brief})}
        largest = None if len(first.files) == 1 else max(file.stat().st_size for file in first.files)
        self.write(self.output / f"{part}{SUFFIX}", first if same else mean, metadata, tell, largest)

    def write(
        self,
        path: Path,
        source: Source,
        metadata: Mapping[str, str],
        tell: Callable[[int], None],
        largest: int | None = None,
    ) -> None:
        """``source`` to one safetensors file, or to shards of at most ``largest`` bytes."""
        write = write_one if largest is None else partial(write_shards, max_bytes=largest)
        write(
            path.parent,
            source.shapes,
            lambda name: runs(source, name, self.limit),
            prefix=path.name.removesuffix(SUFFIX),
            progress=tell,
            source=metadata["merge"],
            metadata=metadata,
        )

    def hash(self, groups: Sequence[Sequence[Path]]) -> list[dict[str, str]]:
        """For each input, name -> hash of its files."""
        tell = self.watch("hashing the inputs", sum(hashes.size(path) for group in groups for path in group))
        return [{path.name: hashes.digest(path, tell) for path in group} for group in groups]

    def provenance(self, digests: Sequence[Mapping[str, str]], found: Sequence[Any]) -> dict[str, Any]:
        """What the result says of its inputs: path, weight, hashes, and their own provenance where they have one."""
        rows = zip(self.paths, self.weights, digests, found, strict=True)
        inputs = [
            {"path": str(path), "weight": weight, "sha256": digest, **({"provenance": its} if its else {})}
            for path, weight, digest, its in rows
        ]
        dtype = None if self.dtype is None else np.dtype(self.dtype).name
        return {"version": __version__, "dtype": dtype, "accumulate": self.accumulate.name, "inputs": inputs}

    def card(self, config: SystemConfig) -> bytes:
        """The model card."""
        lines = [f"- {weight:g} × {path.name}" for path, weight in zip(self.paths, self.weights, strict=True)]
        return CARD.format(name=config.name, many=len(lines), version=__version__, lines="\n".join(lines)).encode()


def _same_tokenizer(paths: Sequence[Path]) -> list[Path]:
    texts = [path / folder.TEXT_MODEL for path in paths]
    for text in texts:
        if not text.is_file():
            raise FileNotFoundError(f"{text}: missing")
        if text.read_bytes() != texts[0].read_bytes():
            raise ValueError(f"{text}: another text tokenizer than {texts[0]}; expected the same file")
    return texts


def _check_new_file(output: Path) -> None:
    """The writer clears away shards of its prefix: none of them may be somebody's."""
    prefix = output.name.removesuffix(SUFFIX)
    taken = [output] if output.exists() else sorted(output.parent.glob(f"{prefix}-*{SUFFIX}"))
    if taken:
        raise ValueError(f"{taken[0]}: exists; remove it or choose another output")


def _flat(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{where}{key}.") if isinstance(value, Mapping) else {where + key: value}
    return out
