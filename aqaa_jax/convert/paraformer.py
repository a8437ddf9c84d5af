"""The published Paraformer folder (weights, CMVN statistics, k-means table) <-> ``LinguisticTokenizer``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from aqaa_jax.config import LinguisticConfig
from aqaa_jax.convert import layout
from aqaa_jax.convert.layout import Entry
from aqaa_jax.convert.readers import open_weights

CODEBOOK = "linguistic_tokenizer.npy"
CMVN = "am.mvn"
_ENCODER = {"selfattention_layer_type": "sanm", "normalize_before": True, "sanm_shfit": 0, "input_layer": "pe_online"}
CONFIGS, WEIGHTS = ("config.yaml", "config.json"), ("model.safetensors", "model.pt")
FILE_WEIGHTS = (f"{CMVN} AddShift", f"{CMVN} Rescale", CODEBOOK)
PREFIX = "encoder."  # decoder, predictor and the rest of the recogniser are not needed


def config_from_upstream(values: Mapping[str, Any], codes: int = 1024) -> LinguisticConfig:
    """``LinguisticConfig`` from the fields of the published ``config.yaml``.

    The chunk sizes there are those of training; the tokenizer passes its own (4 new frames, 5 of overlap, look-back
    4), which are our defaults. ``dither`` is 1.0 when the file does not name it, as upstream. Raises ``ValueError``
    for an encoder this package does not implement.
    """
    encoder, frontend = values["encoder_conf"], values["frontend_conf"]
    for name, value in _ENCODER.items():
        if encoder.get(name, value) != value:
            raise ValueError(f"encoder_conf.{name} is {encoder[name]!r}; only {value!r} is implemented")
    if frontend.get("window", "hamming") != "hamming":
        raise ValueError(f"frontend_conf.window is {frontend['window']!r}; only 'hamming' is implemented")
    return LinguisticConfig(
        sample_rate=frontend.get("fs", 16000),
        num_mels=frontend.get("n_mels", 80),
        lfr_stack=frontend.get("lfr_m", 7),
        lfr_hop=frontend.get("lfr_n", 6),
        dither=float(frontend.get("dither", 1.0)),
        embed=encoder["output_size"],
        heads=encoder["attention_heads"],
        mlp=encoder["linear_units"],
        layers=encoder["num_blocks"],
        fsmn_kernel=encoder["kernel_size"],
        codes=codes,
    )


def config_to_upstream(config: LinguisticConfig) -> dict[str, Any]:
    """The sections of the published ``config.yaml`` that tokenizing needs: the inverse of ``config_from_upstream``.

    There is no recogniser (decoder, predictor): the tokenizer does not have one.
    """
    return {
        "model": "ParaformerStreaming",
        "encoder": "SANMEncoderChunkOpt",
        "encoder_conf": {
            "output_size": config.embed,
            "attention_heads": config.heads,
            "linear_units": config.mlp,
            "num_blocks": config.layers,
            "kernel_size": config.fsmn_kernel,
            **_ENCODER,
        },
        "frontend": "WavFrontendOnline",
        "frontend_conf": {
            "fs": config.sample_rate,
            "window": "hamming",
            "n_mels": config.num_mels,
            "frame_length": 25,
            "frame_shift": 10,
            "lfr_m": config.lfr_stack,
            "lfr_n": config.lfr_hop,
            "dither": config.dither,
        },
    }


def from_upstream(
    state: Mapping[str, np.ndarray],
    config: LinguisticConfig,
    *,
    cmvn: tuple[np.ndarray, np.ndarray],
    codebook: np.ndarray,
) -> dict[str, np.ndarray]:
    """Weights of ``LinguisticTokenizer`` from a ``ParaformerStreaming`` state dict.

    Every ``encoder.*`` tensor must be used. Raises ``ValueError`` naming a missing or unknown one.
    """
    own = {k: v for k, v in state.items() if k.startswith(PREFIX)}
    files = dict(zip(FILE_WEIGHTS, (*cmvn, codebook), strict=True))
    return layout.read(entries(config), own | files, source="paraformer")


def to_upstream(weights: Mapping[str, np.ndarray], config: LinguisticConfig) -> dict[str, np.ndarray]:
    """The inverse of ``from_upstream``: the ``encoder.*`` tensors; CMVN (``cmvn_text``) and codebook are not in it."""
    state = layout.write(entries(config), weights, source="paraformer")
    return {k: np.ascontiguousarray(v) for k, v in state.items() if k not in FILE_WEIGHTS}


def entries(config: LinguisticConfig) -> Iterator[Entry]:
    """The table between published and our names; what other files than the weights hold is named ``FILE_WEIGHTS``."""
    for ours, theirs in zip(("encoder.cmvn_shift", "encoder.cmvn_scale", "codebook.table"), FILE_WEIGHTS, strict=True):
        yield Entry(ours, theirs)
    yield from _norm("encoder.after_norm", [f"{PREFIX}after_norm"], first=True)
    yield from _block("encoder.first.", [f"{PREFIX}encoders0.0."], first=True)
    yield from _block("encoder.blocks.", [f"{PREFIX}encoders.{i}." for i in range(config.layers - 1)], first=False)


def unused_names(state: Mapping[str, Any]) -> list[str]:
    """Tensors of a published file that tokenizing does not need, sorted."""
    return sorted(k for k in state if not k.startswith(PREFIX))


def read_cmvn(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """``(shift, scale)`` float32 from a Kaldi-nnet ``am.mvn``: ``(x + shift) * scale``.

    Raises ``ValueError`` naming the file when a vector is missing or their lengths differ.
    """
    text = Path(path).read_text()
    vectors = []
    for component in ("<AddShift>", "<Rescale>"):
        found = re.search(component + r"[^\[]*\[([^\]]*)\]", text)
        if found is None:
            raise ValueError(f"{path}: no {component} vector")
        vectors.append(np.array(found.group(1).split(), np.float32))
    if len(vectors[0]) != len(vectors[1]):
        raise ValueError(f"{path}: <AddShift> has {len(vectors[0])} values, <Rescale> {len(vectors[1])}")
    return vectors[0], vectors[1]


def cmvn_text(shift: np.ndarray, scale: np.ndarray) -> str:
    """The ``am.mvn`` file of two vectors; ``read_cmvn`` gives them back exactly."""
    n = len(shift)
    rows = [" ".join(str(np.float32(v)) for v in vector) for vector in (shift, scale)]
    return (
        f"<Nnet> \n<Splice> {n} {n}\n[ 0 ]\n<AddShift> {n} {n} \n<LearnRateCoef> 0 [ {rows[0]} ]\n"
        f"<Rescale> {n} {n} \n<LearnRateCoef> 0 [ {rows[1]} ]\n</Nnet> \n"
    )


def files(directory: Path, above: Path | None = None) -> tuple[Path, Path, Path]:
    """The configuration, weights and k-means table of a published folder; the table may be in the one ``above``.

    Raises ``FileNotFoundError`` naming the folder and what it lacks.
    """
    table_in = directory if above is None or (directory / CODEBOOK).is_file() else above
    return (
        _first(directory, *CONFIGS),
        _first(directory, *WEIGHTS),
        _first(table_in, CODEBOOK),
    )


def read_folder(
    directory: str | Path, codebook: str | Path | None = None
) -> tuple[LinguisticConfig, dict[str, np.ndarray], list[str]]:
    """``(config, weights, names not used)`` of a published folder.

    Reads ``config.yaml`` or ``config.json``, ``model.safetensors`` or ``model.pt`` (with torch, if installed),
    ``am.mvn``, and the k-means table (default: ``linguistic_tokenizer.npy`` in the folder).
    Raises ``FileNotFoundError`` or ``ValueError`` naming the file.
    """
    directory = Path(directory)
    config_file, weights = _first(directory, *CONFIGS), _first(directory, *WEIGHTS)
    text = config_file.read_text()
    table = np.load(_first(directory, CODEBOOK) if codebook is None else codebook)
    values = yaml.safe_load(text) if config_file.suffix == ".yaml" else json.loads(text)
    config = config_from_upstream(values, codes=len(table))
    reader = open_weights(weights)
    state = {name: reader.read(name) for name in reader.shapes}
    cmvn = read_cmvn(_first(directory, CMVN))
    return config, from_upstream(state, config, cmvn=cmvn, codebook=table), unused_names(state)


def _first(directory: Path, *names: str) -> Path:
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory}: has no {' or '.join(names)}")


def _block(ours: str, layers: list[str], *, first: bool) -> Iterator[Entry]:
    """One block or a stack of them; the three projections are one published tensor."""
    fused = [f"{layer}self_attn.linear_q_k_v." for layer in layers]
    for piece, name in enumerate(_QKV):
        yield Entry(f"{ours}{name}.kernel", _names(fused, "weight", first), "linear", 0, piece, len(_QKV))
        yield Entry(f"{ours}{name}.bias", _names(fused, "bias", first), "plain", 0, piece, len(_QKV))
    for name, theirs in _LINEAR.items():
        yield Entry(f"{ours}{name}.kernel", _names(layers, f"{theirs}.weight", first), "linear")
        yield Entry(f"{ours}{name}.bias", _names(layers, f"{theirs}.bias", first))
    for name in _NORM:
        yield from _norm(f"{ours}{name}", [f"{layer}{name}" for layer in layers], first=first)
    yield Entry(f"{ours}fsmn", _names(layers, "self_attn.fsmn_block.weight", first), "depthwise")


def _norm(ours: str, layers: list[str], *, first: bool) -> Iterator[Entry]:
    yield Entry(f"{ours}.scale", _names(layers, ".weight", first))
    yield Entry(f"{ours}.bias", _names(layers, ".bias", first))


def _names(layers: list[str], name: str, first: bool) -> str | tuple[str, ...]:
    return layers[0] + name if first else tuple(layer + name for layer in layers)


_LINEAR = {"out": "self_attn.linear_out", "up": "feed_forward.w_1", "down": "feed_forward.w_2"}
_NORM = ("norm1", "norm2")
_QKV = ("query", "key", "value")
