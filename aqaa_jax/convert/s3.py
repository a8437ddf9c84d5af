"""S3 tokenizer weights under their torch names <-> ``SemanticTokenizer``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from aqaa_jax.codec.s3 import sinusoids
from aqaa_jax.config import SemanticConfig
from aqaa_jax.convert import layout
from aqaa_jax.convert.layout import Entry

_LINEAR = {"query": "attn.query", "key": "attn.key", "value": "attn.value", "out": "attn.out"}
_LINEAR |= {"up": "mlp.0", "down": "mlp.2"}
_NORM = {"norm1": "attn_ln", "norm2": "mlp_ln"}
_NO_BIAS = ("key",)
POSITIONS = "encoder.positional_embedding"


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


def entries(config: SemanticConfig) -> Iterator[Entry]:
    """The table between torch and our names; positions are not in it."""
    yield Entry("codebook.table", "quantizer._codebook.embed")
    for conv in ("conv1", "conv2"):
        yield Entry(f"encoder.{conv}.kernel", f"encoder.{conv}.weight", "conv")
        yield Entry(f"encoder.{conv}.bias", f"encoder.{conv}.bias")
    for names, weight, kind in ((_LINEAR, "kernel", "linear"), (_NORM, "scale", "plain")):
        for ours, theirs in names.items():
            layers = [f"encoder.blocks.{i}.{theirs}." for i in range(config.layers)]
            yield Entry(f"encoder.blocks.{ours}.{weight}", tuple(f"{layer}weight" for layer in layers), kind)
            if ours not in _NO_BIAS:
                yield Entry(f"encoder.blocks.{ours}.bias", tuple(f"{layer}bias" for layer in layers))


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
