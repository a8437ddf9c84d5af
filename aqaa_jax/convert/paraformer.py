"""The published Paraformer folder (weights, CMVN statistics, k-means table) <-> ``LinguisticTokenizer``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file

from aqaa_jax.config import LinguisticConfig

CODEBOOK = "linguistic_tokenizer.npy"
CMVN = "am.mvn"
_ENCODER = {"selfattention_layer_type": "sanm", "normalize_before": True, "sanm_shfit": 0, "input_layer": "pe_online"}
_PREFIX = "encoder."  # decoder, predictor and the rest of the recogniser are not needed


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
    left = {k.removeprefix(_PREFIX): np.asarray(v) for k, v in state.items() if k.startswith(_PREFIX)}
    weights = {
        "encoder.cmvn_shift": np.asarray(cmvn[0]),
        "encoder.cmvn_scale": np.asarray(cmvn[1]),
        "codebook.table": np.asarray(codebook),
        "encoder.after_norm.scale": _take(left, "after_norm.weight"),
        "encoder.after_norm.bias": _take(left, "after_norm.bias"),
    }
    for name, value in _block(left, "encoders0.0.").items():
        weights[f"encoder.first.{name}"] = value
    blocks = [_block(left, f"encoders.{i}.") for i in range(config.layers - 1)]
    for name in blocks[0]:
        weights[f"encoder.blocks.{name}"] = np.stack([block[name] for block in blocks])
    if left:
        raise ValueError(f"unknown tensor {_PREFIX + min(left)!r} ({len(left)} unknown in all)")
    return weights


def to_upstream(weights: Mapping[str, np.ndarray], config: LinguisticConfig) -> dict[str, np.ndarray]:
    """The inverse of ``from_upstream``: the ``encoder.*`` tensors; CMVN (``cmvn_text``) and codebook are not in it."""
    weights = {k: np.asarray(v) for k, v in weights.items()}
    state = {
        "after_norm.weight": weights["encoder.after_norm.scale"],
        "after_norm.bias": weights["encoder.after_norm.bias"],
    }
    own = {k.removeprefix("encoder.first."): v for k, v in weights.items() if k.startswith("encoder.first.")}
    state |= {f"encoders0.0.{k}": v for k, v in _block_to_upstream(own).items()}
    stacked = {k.removeprefix("encoder.blocks."): v for k, v in weights.items() if k.startswith("encoder.blocks.")}
    for i in range(config.layers - 1):
        block = _block_to_upstream({k: v[i] for k, v in stacked.items()})
        state |= {f"encoders.{i}.{k}": v for k, v in block.items()}
    return {_PREFIX + k: np.ascontiguousarray(v) for k, v in state.items()}


def unused_names(state: Mapping[str, Any]) -> list[str]:
    """Tensors of a published file that tokenizing does not need, sorted."""
    return sorted(k for k in state if not k.startswith(_PREFIX))


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


def read_folder(
    directory: str | Path, codebook: str | Path | None = None
) -> tuple[LinguisticConfig, dict[str, np.ndarray], list[str]]:
    """``(config, weights, names not used)`` of a published folder.

    Reads ``config.yaml`` or ``config.json``, ``model.safetensors`` or ``model.pt`` (with torch, if installed),
    ``am.mvn``, and the k-means table (default: ``linguistic_tokenizer.npy`` in the folder).
    Raises ``FileNotFoundError`` or ``ValueError`` naming the file.
    """
    directory = Path(directory)
    config_file = _first(directory, "config.yaml", "config.json")
    text = config_file.read_text()
    table = np.load(_first(directory, CODEBOOK) if codebook is None else codebook)
    values = yaml.safe_load(text) if config_file.suffix == ".yaml" else json.loads(text)
    config = config_from_upstream(values, codes=len(table))
    state = _read_state(_first(directory, "model.safetensors", "model.pt"))
    cmvn = read_cmvn(_first(directory, CMVN))
    return config, from_upstream(state, config, cmvn=cmvn, codebook=table), unused_names(state)


def _read_state(path: Path) -> Mapping[str, np.ndarray]:
    if path.suffix == ".safetensors":
        return load_file(path)
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {k: v.float().numpy() for k, v in state.get("state_dict", state).items()}


def _first(directory: Path, *names: str) -> Path:
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory}: has no {' or '.join(names)}")


def _take(left: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in left:
        raise ValueError(f"tensor {_PREFIX + name!r} is missing")
    return left.pop(name)


_LINEAR = {"out": "self_attn.linear_out", "up": "feed_forward.w_1", "down": "feed_forward.w_2"}
_NORM = ("norm1", "norm2")
_QKV = ("query", "key", "value")


def _block(left: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """One block: linear (out, in) -> (in, out), the fused projection split, the memory (D, 1, K) -> (K, D)."""
    out = {}
    kernels = np.split(_take(left, prefix + "self_attn.linear_q_k_v.weight"), 3)
    biases = np.split(_take(left, prefix + "self_attn.linear_q_k_v.bias"), 3)
    for name, kernel, bias in zip(_QKV, kernels, biases, strict=True):
        out[f"{name}.kernel"], out[f"{name}.bias"] = kernel.T, bias
    for name, theirs in _LINEAR.items():
        out[f"{name}.kernel"] = _take(left, f"{prefix}{theirs}.weight").T
        out[f"{name}.bias"] = _take(left, f"{prefix}{theirs}.bias")
    for name in _NORM:
        out[f"{name}.scale"] = _take(left, f"{prefix}{name}.weight")
        out[f"{name}.bias"] = _take(left, f"{prefix}{name}.bias")
    out["fsmn"] = _take(left, prefix + "self_attn.fsmn_block.weight")[:, 0].T
    return out


def _block_to_upstream(block: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = {
        "self_attn.linear_q_k_v.weight": np.concatenate([block[f"{name}.kernel"].T for name in _QKV]),
        "self_attn.linear_q_k_v.bias": np.concatenate([block[f"{name}.bias"] for name in _QKV]),
        "self_attn.fsmn_block.weight": block["fsmn"].T[:, None],
    }
    for name, theirs in _LINEAR.items():
        out |= {f"{theirs}.weight": block[f"{name}.kernel"].T, f"{theirs}.bias": block[f"{name}.bias"]}
    for name in _NORM:
        out |= {f"{name}.weight": block[f"{name}.scale"], f"{name}.bias": block[f"{name}.bias"]}
    return out
