"""The published HiFT (``hift.pt``, the ``hift`` section of cosyvoice.yaml) to ours and back.

The published convolutions are stored under weight norm, ``w = g v / ||v||`` with the norm over every axis but the
first. We keep only ``w``. On the way back ``g = ||w||`` and ``v = w``: the product is the same, but the ``g`` and
``v`` that training had cannot be recovered (any positive multiple of ``v`` gives the same ``w``). Read again, a file
so written gives ``w`` to the last bit: where ``g`` is the rounded norm of ``v``, ``v`` itself is the product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from aqaa_jax.config import HiftConfig
from aqaa_jax.convert.layout import Entry, read, write
from aqaa_jax.convert.readers import Lazy, Reader, in_memory


def config_from_upstream(published: Mapping[str, Any]) -> HiftConfig:
    """``HiftConfig`` from the published fields; ``f0_predictor`` is a section of its own."""
    f0 = published["f0_predictor"]
    if f0.get("num_class", 1) != 1 or f0.get("in_channels", 80) != published["in_channels"]:
        raise ValueError(f"published F0 predictor {dict(f0)!r} does not read {published['in_channels']} mel bins")
    return HiftConfig(
        sample_rate=published["sampling_rate"],
        num_mels=published["in_channels"],
        channels=published["base_channels"],
        f0_channels=f0["cond_channels"],
        harmonics=published["nb_harmonics"],
        sine_amplitude=float(published["nsf_alpha"]),
        noise_sigma=float(published["nsf_sigma"]),
        voiced_threshold=float(published["nsf_voiced_threshold"]),
        upsample_rates=tuple(published["upsample_rates"]),
        upsample_kernels=tuple(published["upsample_kernel_sizes"]),
        istft_n_fft=published["istft_params"]["n_fft"],
        istft_hop=published["istft_params"]["hop_len"],
        resblock_kernels=tuple(published["resblock_kernel_sizes"]),
        resblock_dilations=tuple(tuple(d) for d in published["resblock_dilation_sizes"]),
        source_kernels=tuple(published["source_resblock_kernel_sizes"]),
        source_dilations=tuple(tuple(d) for d in published["source_resblock_dilation_sizes"]),
        leaky_slope=float(published["lrelu_slope"]),
        audio_limit=float(published["audio_limit"]),
    )


def config_to_upstream(config: HiftConfig) -> dict[str, Any]:
    """The published fields of a ``HiftConfig``: the inverse of ``config_from_upstream``.

    Raises ``ValueError`` for a depth of the F0 predictor that the published one does not have.
    """
    if config.f0_layers != HiftConfig().f0_layers:
        raise ValueError(f"hift has {config.f0_layers} f0_layers; the published one has {HiftConfig().f0_layers}")
    return {
        "in_channels": config.num_mels,
        "base_channels": config.channels,
        "nb_harmonics": config.harmonics,
        "sampling_rate": config.sample_rate,
        "nsf_alpha": config.sine_amplitude,
        "nsf_sigma": config.noise_sigma,
        "nsf_voiced_threshold": config.voiced_threshold,
        "upsample_rates": list(config.upsample_rates),
        "upsample_kernel_sizes": list(config.upsample_kernels),
        "istft_params": {"n_fft": config.istft_n_fft, "hop_len": config.istft_hop},
        "resblock_kernel_sizes": list(config.resblock_kernels),
        "resblock_dilation_sizes": [list(d) for d in config.resblock_dilations],
        "source_resblock_kernel_sizes": list(config.source_kernels),
        "source_resblock_dilation_sizes": [list(d) for d in config.source_dilations],
        "lrelu_slope": config.leaky_slope,
        "audio_limit": config.audio_limit,
        "f0_predictor": {"num_class": 1, "in_channels": config.num_mels, "cond_channels": config.f0_channels},
    }


def from_upstream(state: Mapping[str, np.ndarray], config: HiftConfig) -> dict[str, np.ndarray]:
    """Our weights from the published state dict, weight norm folded in."""
    return read(entries(config), fold_weight_norm(state), source="hift")


def to_upstream(weights: Mapping[str, np.ndarray], config: HiftConfig) -> dict[str, np.ndarray]:
    """A published state dict that computes the same function; see the module for what cannot be inverted."""
    out: dict[str, np.ndarray] = {}
    for name, value in write(entries(config), weights, source="hift").items():
        out |= unfold_weight_norm(name, value)
    return out


def unfold_weight_norm(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors that a published file holds for the folded tensor ``name``: itself, or its ``weight_g, weight_v``."""
    prefix = name.removesuffix(".weight")
    if prefix == name or not _is_normed(prefix):
        return {name: value}
    return {f"{prefix}.weight_g": _norm(value).astype(value.dtype), f"{prefix}.weight_v": value}


def fold_weight_norm(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``state`` with every ``weight_g``, ``weight_v`` pair replaced by their product ``weight``."""
    folded = folding(in_memory(state))
    return {name: folded.read(name) for name in folded.shapes}


def folding(published: Reader) -> Lazy:
    """``published`` with every ``weight_g``, ``weight_v`` pair read as their product ``weight``."""
    shapes = {name.removesuffix("_v"): t for name, t in published.shapes.items() if not name.endswith(".weight_g")}
    for name in shapes:
        if f"{name}_v" in published.shapes and f"{name}_g" not in published.shapes:
            raise ValueError(f"hift: published tensor {name + '_g'!r} is missing")

    def read_one(name: str) -> np.ndarray:
        if f"{name}_v" not in published.shapes:
            return published.read(name)
        value = published.read(f"{name}_v")
        g, norm = np.asarray(published.read(f"{name}_g")), _norm(value)
        scale = np.where(g == norm.astype(g.dtype), 1.0, g.astype(np.float64) / norm)
        return (scale * value).astype(value.dtype)

    return Lazy(shapes, read_one)


def _norm(v: np.ndarray) -> np.ndarray:
    squares = np.square(np.ascontiguousarray(v), dtype=np.float64)  # one order of summation, whatever the layout
    return np.sqrt(np.sum(squares, axis=tuple(range(1, v.ndim)), keepdims=True))


def _is_normed(prefix: str) -> bool:
    return not prefix.startswith(("source_downs.", "m_source.", "f0_predictor.classifier"))


def entries(config: HiftConfig) -> Iterator[Entry]:
    """The table between published names, weight norm folded, and ours."""
    for i in range(config.f0_layers):  # convolution, activation
        yield from _layer(f"f0_predictor.convs.{i}", f"f0_predictor.condnet.{2 * i}", "conv")
    yield from _layer("f0_predictor.classifier", "f0_predictor.classifier", "linear")
    yield from _layer("harmonic_source.mix", "m_source.l_linear", "linear")
    yield from _layer("conv_pre", "conv_pre", "conv")
    for i in range(len(config.upsample_rates)):
        yield from _layer(f"ups.{i}", f"ups.{i}", "conv_transpose")
        yield from _layer(f"source_convs.{i}", f"source_downs.{i}", "conv")
        yield from _resblock(f"source_resblocks.{i}", len(config.source_dilations[i]))
        for j, dilations in enumerate(config.resblock_dilations):
            yield from _resblock(f"resblocks.{i * len(config.resblock_kernels) + j}", len(dilations))
    yield from _layer("conv_post", "conv_post", "conv")


def _resblock(name: str, count: int) -> Iterator[Entry]:
    for half in (1, 2):
        for i in range(count):
            yield from _layer(f"{name}.convs{half}.{i}", f"{name}.convs{half}.{i}", "conv")
            yield Entry(f"{name}.snakes{half}.{i}.alpha", f"{name}.activations{half}.{i}.alpha")


def _layer(ours: str, published: str, kind: str) -> Iterator[Entry]:
    yield Entry(f"{ours}.kernel", f"{published}.weight", kind)
    yield Entry(f"{ours}.bias", f"{published}.bias")
