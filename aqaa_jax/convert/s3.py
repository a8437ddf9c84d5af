"""S3 tokenizer weights under their torch names <-> ``SemanticTokenizer``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from aqaa_jax.codec.s3 import sinusoids
from aqaa_jax.config import SemanticConfig

_LINEAR = {"query": "attn.query", "key": "attn.key", "value": "attn.value", "out": "attn.out"}
_LINEAR |= {"up": "mlp.0", "down": "mlp.2"}
_NORM = {"norm1": "attn_ln", "norm2": "mlp_ln"}
_NO_BIAS = ("key",)
_POSITIONS = "encoder.positional_embedding"


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
        heads=values["n_audio_head"],
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
        "n_audio_head": config.heads,
        "n_audio_layer": config.layers,
        "n_codebook_size": config.codes,
    }


def from_upstream(state: Mapping[str, np.ndarray], config: SemanticConfig) -> dict[str, np.ndarray]:
    """Weights of ``SemanticTokenizer`` from the torch state dict.

    Positions are a formula here, not a weight: the stored ones are only checked. Raises ``ValueError`` naming a
    missing or unknown tensor, or positions that are not the usual sinusoids.
    """
    left = {k: np.asarray(v) for k, v in state.items()}
    stored = _take(left, _POSITIONS)
    gap = np.abs(stored - np.asarray(sinusoids(*stored.shape))).max()
    if gap > 1e-3:
        raise ValueError(f"tensor {_POSITIONS!r} differs from the usual sinusoids by {gap:.3g}")
    weights = {"codebook.table": _take(left, "quantizer._codebook.embed")}
    for conv in ("conv1", "conv2"):
        weights[f"encoder.{conv}.kernel"] = _take(left, f"encoder.{conv}.weight").transpose(2, 1, 0)
        weights[f"encoder.{conv}.bias"] = _take(left, f"encoder.{conv}.bias")
    blocks = [_block(left, f"encoder.blocks.{i}.") for i in range(config.layers)]
    for name in blocks[0]:
        weights[f"encoder.blocks.{name}"] = np.stack([block[name] for block in blocks])
    if left:
        raise ValueError(f"unknown tensor {min(left)!r} ({len(left)} unknown in all)")
    return weights


def to_upstream(weights: Mapping[str, np.ndarray], config: SemanticConfig) -> dict[str, np.ndarray]:
    """The inverse of ``from_upstream``; positions are computed."""
    weights = {k: np.asarray(v) for k, v in weights.items()}
    state = {
        "quantizer._codebook.embed": weights["codebook.table"],
        _POSITIONS: np.asarray(sinusoids(config.max_positions, config.embed)),
    }
    for conv in ("conv1", "conv2"):
        state[f"encoder.{conv}.weight"] = weights[f"encoder.{conv}.kernel"].transpose(2, 1, 0)
        state[f"encoder.{conv}.bias"] = weights[f"encoder.{conv}.bias"]
    for i in range(config.layers):
        ours, theirs = "encoder.blocks.", f"encoder.blocks.{i}."
        for name, upstream in _LINEAR.items():
            state[f"{theirs}{upstream}.weight"] = weights[f"{ours}{name}.kernel"][i].T
            if name not in _NO_BIAS:
                state[f"{theirs}{upstream}.bias"] = weights[f"{ours}{name}.bias"][i]
        for name, upstream in _NORM.items():
            state[f"{theirs}{upstream}.weight"] = weights[f"{ours}{name}.scale"][i]
            state[f"{theirs}{upstream}.bias"] = weights[f"{ours}{name}.bias"][i]
    return {k: np.ascontiguousarray(v) for k, v in state.items()}


def _block(left: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    out = {}
    for name, upstream in _LINEAR.items():
        out[f"{name}.kernel"] = _take(left, f"{prefix}{upstream}.weight").T
        if name not in _NO_BIAS:
            out[f"{name}.bias"] = _take(left, f"{prefix}{upstream}.bias")
    for name, upstream in _NORM.items():
        out[f"{name}.scale"] = _take(left, f"{prefix}{upstream}.weight")
        out[f"{name}.bias"] = _take(left, f"{prefix}{upstream}.bias")
    return out


def _take(left: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in left:
        raise ValueError(f"tensor {name!r} is missing")
    return left.pop(name)
