"""S3 tokenizer weights under their torch names <-> ``SemanticTokenizer``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aqaa_jax.codec.s3 import sinusoids
from aqaa_jax.config import SemanticConfig
from aqaa_jax.convert import layout, onnx_file
from aqaa_jax.convert.layout import Entry
from aqaa_jax.convert.readers import Lazy

_LINEAR = {"query": "attn.query", "key": "attn.key", "value": "attn.value", "out": "attn.out"}
_LINEAR |= {"up": "mlp.0", "down": "mlp.2"}
_NORM = {"norm1": "attn_ln", "norm2": "mlp_ln"}
_NO_BIAS = ("key",)
_HEADS = "n_audio_head"
POSITIONS, _CODEBOOK = "encoder.positional_embedding", "quantizer._codebook.embed"


def config_from_upstream(values: Mapping[str, Any]) -> SemanticConfig:
    """``SemanticConfig`` from the fields of S3Tokenizer's ``ModelConfig`` (25 Hz, version 1).

    Raises ``ValueError`` for another model name: the 50 Hz one has the same tensors and another stride.
    """
    name = values.get("name", "speech_tokenizer_v1_25hz")
    if name != "speech_tokenizer_v1_25hz":
        raise ValueError(f"S3 tokenizer {name!r} is not implemented; expected 'speech_tokenizer_v1_25hz'")
    return SemanticConfig(
        num_mels=values["n_mels"],
        embed=values["n_audio_state"],
        heads=values[_HEADS],
        mlp=4 * values["n_audio_state"],
        layers=values["n_audio_layer"],
        max_positions=values["n_audio_ctx"],
        codes=values["n_codebook_size"],
    )


def config_to_upstream(config: SemanticConfig) -> dict[str, Any]:
    """The fields that ``config_from_upstream`` reads. Raises ``ValueError`` for a width they cannot say."""
    if config.mlp != 4 * config.embed:
        raise ValueError(f"semantic tokenizer has mlp {config.mlp}; the published layout has 4 * {config.embed}")
    return {
        "name": "speech_tokenizer_v1_25hz",
        "n_mels": config.num_mels,
        "n_audio_ctx": config.max_positions,
        "n_audio_state": config.embed,
        _HEADS: config.heads,
        "n_audio_layer": config.layers,
        "n_codebook_size": config.codes,
    }


def config_from_shapes(
    shapes: Mapping[str, jax.ShapeDtypeStruct], base: SemanticConfig, origin: str, heads: int = 0
) -> SemanticConfig:
    """``SemanticConfig`` from the shapes of the torch state dict, which do not tell the number of ``heads``.

    If the file does not either (0), it is that of ``base`` if the width is, else one per 64. Raises ``ValueError``
    naming a missing tensor, or the width that does not divide into heads.
    """
    needed = (POSITIONS, "encoder.conv1.weight", _CODEBOOK, "encoder.blocks.0.mlp.0.weight")
    for name in needed:
        if name not in shapes:
            raise ValueError(f"{origin}: tensor {name!r} is missing")
    positions, conv, codebook, mlp = (shapes[name].shape for name in needed)
    embed = positions[1]
    heads = heads or (base.heads if base.embed == embed else max(1, embed // 64))
    if embed % heads:
        raise ValueError(f"{origin}: width {embed} does not divide into {heads} heads")
    return dataclasses.replace(
        base,
        num_mels=conv[1],
        embed=embed,
        heads=heads,
        mlp=mlp[0],
        layers=len({name.split(".")[2] for name in shapes if name.startswith("encoder.blocks.")}),
        max_positions=positions[0],
        codes=codebook[0],
    )


def open_onnx(path: Path) -> tuple[Lazy, dict[str, str], int]:
    """A reader of ``speech_tokenizer_v1.onnx`` under torch names, torch name -> initializer, and the number of heads.

    The published file says nothing of heads (0 here), one that was exported does.
    Linear weights and the codebook are anonymous in the file and stored (in, out): they are found through the nodes
    that use them. Initializers that stand for no weight are in the reader under their own names. Raises
    ``ValueError`` for the 50 Hz file of the same name, whose first convolution has stride 1.
    """
    graph = onnx_file.read_graph(path)
    for node in graph.nodes.values():
        if "encoders.conv1.weight" in node.inputs and node.ints.get("strides", (1,)) != (2,):
            raise ValueError(
                f"{path}: its first convolution has stride {node.ints.get('strides', (1,))[0]}: this is the 50 Hz "
                "tokenizer of CosyVoice-300M; expected the 25 Hz one (stride 2), a file of the same name "
                "(Step-Audio-Tokenizer, CosyVoice-300M-25Hz)"
            )
    found: dict[str, tuple[str, bool]] = {}  # torch name -> initializer, transposed
    for name in graph.weights:
        if name.startswith("encoders."):
            found[f"encoder.{name.removeprefix('encoders.')}"] = (name, False)
    for name, node in graph.nodes.items():
        for torch_name, initializer, transposed in _weights_of(name, node, graph):
            found.setdefault(torch_name, (initializer, transposed))
    used = {initializer for initializer, _ in found.values()}
    found |= {name: (name, False) for name in graph.weights if name not in used}

    def read_one(name: str) -> np.ndarray:
        initializer, transposed = found[name]
        array = onnx_file.read_weight(path, initializer, graph.weights[initializer])
        return array.T if transposed else array

    def struct(initializer: str, transposed: bool) -> jax.ShapeDtypeStruct:
        stored = graph.weights[initializer].struct
        return jax.ShapeDtypeStruct(stored.shape[::-1], stored.dtype) if transposed else stored

    shapes = {name: struct(*place) for name, place in found.items()}
    resolved = {name: place[0] for name, place in found.items() if place[0] in used}
    heads = graph.metadata.get(_HEADS, "0")
    if not heads.isdecimal():
        raise ValueError(f"{path}: its {_HEADS} is {heads!r}; expected a number of heads")
    return Lazy(shapes, read_one), resolved, int(heads)


_NODE = re.compile(r"/(blocks\.\d+)/(?:(attn|mlp)/)?([\w.]+)/(MatMul|Mul|Add|Add_1)")


def _weights_of(name: str, node: onnx_file.Node, graph: onnx_file.Graph) -> Iterator[tuple[str, str, bool]]:
    """(torch name, initializer, stored transposed) of what a node multiplies with or adds."""
    initializers = [i for i in node.inputs if i in graph.weights]
    if name.endswith("/_codebook/MatMul"):
        yield from ((_CODEBOOK, i, True) for i in initializers)
    elif match := _NODE.search(name):
        block, group, layer, operation = match.groups()
        module = ".".join(filter(None, ["encoder", block, group, layer.removeprefix("mlp.") if group else layer]))
        field = "weight" if operation in ("MatMul", "Mul") else "bias"
        if operation == "MatMul" or layer in _NORM.values() or operation == "Add":
            yield from ((f"{module}.{field}", i, operation == "MatMul") for i in initializers)


def entries(config: SemanticConfig) -> Iterator[Entry]:
    """The table between torch and our names; positions are not in it."""
    yield Entry("codebook.table", _CODEBOOK)
    for conv in ("conv1", "conv2"):
        yield Entry(f"encoder.{conv}.kernel", f"encoder.{conv}.weight", "conv")
        yield Entry(f"encoder.{conv}.bias", f"encoder.{conv}.bias")
    for names, weight, kind in ((_LINEAR, "kernel", "linear"), (_NORM, "scale", "plain")):
        for ours, theirs in names.items():
            layers = [f"encoder.blocks.{i}.{theirs}." for i in range(config.layers)]
            yield Entry(f"encoder.blocks.{ours}.{weight}", tuple(f"{layer}weight" for layer in layers), kind)
            if ours not in _NO_BIAS:
                yield Entry(f"encoder.blocks.{ours}.bias", tuple(f"{layer}bias" for layer in layers))


def initializers(config: SemanticConfig) -> dict[str, str]:
    """Torch name -> the initializer that holds it in an ONNX file: matrices have numbers for names, as published."""
    layers = range(config.layers)
    matrices = [f"encoder.blocks.{i}.{name}.weight" for i in layers for name in _LINEAR.values()]
    numbered = {name: f"onnx::MatMul_{n}" for n, name in enumerate([*matrices, _CODEBOOK], 1)}
    names = (name for entry in entries(config) for name in entry.names)
    return {name: numbered.get(name, name.replace("encoder.", "encoders.", 1)) for name in (*names, POSITIONS)}


def onnx_entries(config: SemanticConfig) -> Iterator[Entry]:
    """``entries`` for the ONNX file: under the names of initializers, matrices the other way round."""
    stored = initializers(config)
    turned = {"linear": "plain", "plain": "linear"}
    for entry in entries(config):
        matrix = entry.kind == "linear" or entry.published == _CODEBOOK
        names = tuple(stored[name] for name in entry.names)
        published = names if entry.stack else names[0]
        yield entry._replace(published=published, kind=turned[entry.kind] if matrix else entry.kind)


def from_upstream(state: Mapping[str, np.ndarray], config: SemanticConfig) -> dict[str, np.ndarray]:
    """Weights of ``SemanticTokenizer`` from the torch state dict.

    Positions are a formula here, not a weight: the stored ones are only checked. Raises ``ValueError`` naming a
    missing or unexpected tensor, or positions that are not the usual sinusoids.
    """
    if POSITIONS not in state:
        raise ValueError(f"s3: published tensor {POSITIONS!r} is missing")
    check_positions(np.asarray(state[POSITIONS]))
    return layout.read(entries(config), {k: v for k, v in state.items() if k != POSITIONS}, source="s3")


def check_positions(stored: np.ndarray) -> None:
    """Raise ``ValueError`` unless the stored positions are the usual sinusoids, which are computed here."""
    gap = np.abs(stored - np.asarray(sinusoids(*stored.shape))).max()
    if not gap <= 1e-3:
        raise ValueError(f"tensor {POSITIONS!r} differs from the usual sinusoids by {gap:.3g}")


def to_upstream(weights: Mapping[str, np.ndarray], config: SemanticConfig) -> dict[str, np.ndarray]:
    """The inverse of ``from_upstream``; positions are computed (``positions``)."""
    state = layout.write(entries(config), weights, source="s3")
    state[POSITIONS] = positions(config)
    return {k: np.ascontiguousarray(v) for k, v in state.items()}


def positions(config: SemanticConfig) -> np.ndarray:
    """The published table of positions: float32 rates and angles as PyTorch has them, each sine rounded once.

    PyTorch's own table differs from this by a unit in the last place in 6 % of its values; ``codec.s3.sinusoids``,
    whose rates are rounded later, by up to 2e-5.
    """
    half = config.embed // 2
    exponents = (-np.log(10000.0) / (half - 1) * np.arange(half)).astype(np.float32)
    rates = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = (np.arange(config.max_positions, dtype=np.float32)[:, None] * rates).astype(np.float64)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
