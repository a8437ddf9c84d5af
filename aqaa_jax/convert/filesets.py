"""The published file sets: recognised by the files in a folder, opened without reading a tensor."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from aqaa_jax.atomic import read_json
from aqaa_jax.checkpoint.shards import ShardReader
from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import LinguisticConfig, SemanticConfig, SystemConfig
from aqaa_jax.convert import cosyvoice, flow, hift, layout, paraformer, s3, step1
from aqaa_jax.convert.composing import part_config, with_part
from aqaa_jax.convert.layout import Entry
from aqaa_jax.convert.readers import Lazy, Reader, in_memory, merged, open_weights
from aqaa_jax.parts import abstract

S3_FILE = "speech_tokenizer_v1"
S3_ONNX = f"{S3_FILE}.onnx"
# What published files do not say: taken from the base config, never compared with it.
_OURS = {
    "linguistic": ("dither", "chunk", "overlap", "look_back", "norm_eps"),
    "semantic": ("sample_rate", "norm_eps"),
    "decoder": ("alibi_slopes", "dtype", "param_dtype", "remat", "unroll", "scan"),
    "flow": ("temperature", "training_noise", "mel_mean", "mel_std", "steps", "prompt_probability", "prompt_fraction"),
    "hift": ("f0_layers",),
}


class FileSet(NamedTuple):
    """One part as published: where it is, what it should hold, and how to read it."""

    part: str
    origin: Path
    files: tuple[Path, ...]
    config: Any  # of the part, in our terms
    model: Any  # the abstract part
    published: Reader  # every tensor of the files
    expected: Mapping[str, tuple[int, ...]]  # name in the files -> shape
    convertible: Reader  # the tensors that ``entries`` name
    entries: tuple[Entry, ...]
    known_aside: Callable[[str], bool]  # a tensor that the part does not need, by name
    dtype: str = ""  # the files' own word for their dtype, where they have one
    check: Callable[[], None] = lambda: None  # of values, once, before anything is written

    @property
    def fingerprint(self) -> str:
        """Identifies the source files by name, size and time of change."""
        stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in self.files]
        return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def detect(
    directory: Path, base: SystemConfig, *, given: bool, parts: tuple[str, ...] = (), dtype: str = ""
) -> list[FileSet]:
    """The file sets in ``directory``, opened; only ``parts`` if any are named.

    ``base`` gives what the files do not say, and with ``given`` must agree with what they do. In a vocoder folder the
    semantic tokenizer, which is also in Step-Audio-Tokenizer, is left out unless named. Raises
    ``FileNotFoundError`` or ``ValueError`` naming the file.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such folder")
    openers: dict[str, Callable[[], FileSet]] = {}
    speech = {p.parent for pattern in ("", "*/", "*/*/") for p in directory.glob(pattern + paraformer.CMVN)}
    if len(speech) > 1:
        raise ValueError(f"{directory}: {paraformer.CMVN} is in {' and in '.join(map(str, sorted(speech)))}; name one")
    for folder in speech:
        openers["linguistic"] = lambda folder=folder: open_paraformer(folder, directory, base)
    if (directory / "config.json").is_file() and any(directory.glob("model*.safetensors*")) and directory not in speech:
        openers["decoder"] = lambda: open_step1(directory, base, given, dtype)
    vocoder = _one_of(directory, "flow") or _one_of(directory, "hift")
    if (tokenizer := _one_of(directory, S3_FILE)) and (not vocoder or "semantic" in parts):
        openers["semantic"] = lambda: open_s3(tokenizer, base)
    for part, opener in (("flow", open_flow), ("hift", open_hift)):
        if path := _one_of(directory, part):
            openers[part] = lambda path=path, opener=opener: opener(path, base)
    absent = [part for part in parts if part not in openers]
    if absent or not openers:
        wanted = f"files of the part {absent[0]!r}" if absent else "published files"
        raise ValueError(
            f"{directory}: holds no {wanted}; expected config.json with model*.safetensors (Step1), "
            f"{paraformer.CMVN} with model.pt (Paraformer), {S3_FILE}.onnx, flow.pt or hift.pt with cosyvoice.yaml"
        )
    found = [open_set() for part, open_set in openers.items() if not parts or part in parts]
    for one in found if given else ():
        _check_agrees(one, base)
    return found


def _one_of(directory: Path, stem: str) -> Path | None:
    suffixes = (".onnx", ".safetensors") if stem == S3_FILE else (".pt", ".safetensors")
    return next((directory / f"{stem}{s}" for s in suffixes if (directory / f"{stem}{s}").is_file()), None)


def _check_agrees(one: FileSet, base: SystemConfig) -> None:
    """Raise ``ValueError`` naming the first published value that is not that of the given config."""
    mine = part_config(base, one.part)
    for field in dataclasses.fields(mine):
        read, wanted = getattr(one.config, field.name), getattr(mine, field.name)
        if field.name not in _OURS[one.part] and read != wanted:
            raise ValueError(f"{one.origin}: {one.part}.{field.name} is {read}; the given config has {wanted}")


def _from_base(config: Any, base: SystemConfig, part: str) -> Any:
    mine = part_config(base, part)
    return dataclasses.replace(config, **{name: getattr(mine, name) for name in _OURS[part]})


def _expected(part: str, config: Any, model: Any, entries: tuple[Entry, ...]) -> dict[str, tuple[int, ...]]:
    """Published name -> shape of the tensors that ``entries`` need, from the abstract part."""
    # a broadcast scalar takes no memory
    blank = {name: np.broadcast_to(np.int8(1), w.shape) for name, w in named_weights(model).items()}
    state = hift.to_upstream(blank, config) if part == "hift" else layout.write(entries, blank, source=part)
    return {name: tuple(array.shape) for name, array in state.items()}


def open_step1(directory: Path, base: SystemConfig, given: bool, dtype: str) -> FileSet:
    """Step-Audio-Chat, -TTS-3B, -AQAA or any other Step1 checkpoint; ``dtype`` replaces that of the files if given."""
    path = directory / "config.json"
    values = read_json(path)
    nested = [values, *(v for v in values.values() if isinstance(v, dict))]  # a multimodal config holds the text one
    published = next((v for v in nested if step1.is_decoder(v)), values)
    try:
        config = base.decoder if given and not step1.is_decoder(published) else step1.decoder_config(published)
    except ValueError as error:
        raise ValueError(f"{path}: {error} (or give a --config)") from None
    config = _from_base(config, base, "decoder")
    if stored := dtype or step1.stored_dtype(published):
        config = dataclasses.replace(config, dtype=stored, param_dtype=stored)
    reader = ShardReader(directory)
    places = step1.locate(reader.shapes, config)
    shapes = step1.published_shapes(config)
    body = next(iter(places.values())).removesuffix("embed_tokens.weight") + "layers."
    return FileSet(
        part="decoder",
        origin=directory,
        files=(path, *reader.files),
        config=config,
        model=abstract(with_part(base, "decoder", config), "decoder"),
        published=reader,
        expected={places[name]: shape for name, shape in shapes.items()},
        convertible=Lazy(reader.shapes, lambda name: reader.read(places[name])),
        entries=tuple(layout.per_layer(step1.entries(config))),
        known_aside=lambda name: not name.startswith(body),
        dtype=step1.stored_dtype(published),
    )


def open_paraformer(directory: Path, above: Path, base: SystemConfig) -> FileSet:
    """The Paraformer folder; the k-means table is in it or in the folder ``above``."""
    config_file, weights, codebook = paraformer.files(directory, above)
    table, cmvn = read_npy(codebook), paraformer.read_cmvn(directory / paraformer.CMVN)
    values = read_yaml(config_file) if config_file.suffix == ".yaml" else read_json(config_file)
    try:
        config = paraformer.config_from_upstream(values, codes=len(table))
    except KeyError as error:
        raise ValueError(f"{config_file}: lacks {error}") from None
    config = _from_base(config, base, "linguistic")
    assert isinstance(config, LinguisticConfig)
    small = in_memory(dict(zip(paraformer.FILE_WEIGHTS, (*cmvn, table), strict=True)))
    reader = merged(open_weights(weights), small)
    entries = tuple(paraformer.entries(config))
    model = abstract(with_part(base, "linguistic", config), "linguistic")
    return FileSet(
        part="linguistic",
        origin=weights,
        files=(config_file, weights, codebook, directory / paraformer.CMVN),
        config=config,
        model=model,
        published=reader,
        expected=_expected("linguistic", config, model, entries),
        convertible=reader,
        entries=entries,
        known_aside=lambda name: not name.startswith(paraformer.PREFIX),
    )


def open_s3(path: Path, base: SystemConfig) -> FileSet:
    """``speech_tokenizer_v1.onnx``, or its torch state dict as safetensors."""
    if path.suffix == ".onnx":
        reader, resolved, heads = s3.open_onnx(path)
    else:
        reader, resolved, heads = open_weights(path), None, 0
    config = s3.config_from_shapes(reader.shapes, base.tokenizer.semantic, str(path), heads)
    assert isinstance(config, SemanticConfig)
    entries = tuple(s3.entries(config))
    model = abstract(with_part(base, "semantic", config), "semantic")
    expected = _expected("semantic", config, model, entries) | {s3.POSITIONS: reader.shapes[s3.POSITIONS].shape}
    return FileSet(
        part="semantic",
        origin=path,
        files=(path,),
        config=config,
        model=model,
        published=reader,
        expected=expected,
        convertible=reader,
        entries=entries,
        known_aside=lambda name: resolved is not None and name not in resolved,  # constants of the graph
        check=lambda: s3.check_positions(reader.read(s3.POSITIONS)),
    )


def open_flow(path: Path, base: SystemConfig) -> FileSet:
    """``flow.pt`` beside its ``cosyvoice.yaml``."""
    yaml_file = path.parent / cosyvoice.FILE
    config = cosyvoice.flow_config(yaml_file)
    config = _from_base(config, base, "flow")
    reader, entries = open_weights(path), tuple(flow.entries(config))
    return _vocoder_set("flow", path, yaml_file, config, reader, reader, entries, base)


def open_hift(path: Path, base: SystemConfig) -> FileSet:
    """``hift.pt`` beside its ``cosyvoice.yaml``, weight norm folded as it is read."""
    yaml_file = path.parent / cosyvoice.FILE
    config = _from_base(cosyvoice.hift_config(yaml_file), base, "hift")
    reader, entries = open_weights(path), tuple(hift.entries(config))
    return _vocoder_set("hift", path, yaml_file, config, reader, hift.folding(reader), entries, base)


def _vocoder_set(
    part: str,
    path: Path,
    yaml_file: Path,
    config: Any,
    published: Reader,
    convertible: Reader,
    entries: tuple[Entry, ...],
    base: SystemConfig,
) -> FileSet:
    model = abstract(with_part(base, part, config), part)
    expected = _expected(part, config, model, entries)
    none = lambda name: False  # noqa: E731
    return FileSet(part, path, (path, yaml_file), config, model, published, expected, convertible, entries, none)


def read_yaml(path: Path) -> dict[str, Any]:
    """A plain YAML mapping. Raises ``ValueError`` naming the file."""
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds {type(values).__name__}; expected a mapping")
    return values


def read_npy(path: Path) -> np.ndarray:
    """A two-dimensional float table. Raises ``ValueError`` naming the file; nothing is unpickled."""
    try:
        table = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: not a NumPy array ({error})") from None
    if getattr(table, "ndim", 0) != 2 or table.dtype.kind != "f":
        raise ValueError(f"{path}: expected a table of floats, codes by width")
    return table
