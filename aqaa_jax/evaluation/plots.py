"""Pictures: spectrograms and loss curves, drawn without a display."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from aqaa_jax import atomic


def _figure(rows: int, width: float = 9.0, height: float = 2.6):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, 1, squeeze=False)[:, 0]


def spectrograms(wavs: Mapping[str, tuple[np.ndarray, int]], path: str | Path) -> None:
    """Log-mel spectrograms, one panel per title; ``wavs`` maps a title to (waveform, sample rate)."""
    import librosa

    figure, axes = _figure(len(wavs))
    for axis, (title, (wav, rate)) in zip(axes, wavs.items(), strict=True):
        mel = librosa.feature.melspectrogram(
            y=np.asarray(wav, np.float32), sr=rate, n_fft=1024, hop_length=256, n_mels=80
        )
        picture = librosa.power_to_db(mel, ref=np.max, top_db=70)
        axis.imshow(picture, origin="lower", aspect="auto", extent=(0, len(wav) / rate, 0, 80), cmap="magma")
        axis.set(title=title, xlabel="seconds", ylabel="mel bin")
    with atomic.written(path) as part:
        figure.savefig(part, dpi=110, format=Path(path).suffix[1:] or "png")


def loss_curves(metrics: str | Path, path: str | Path, *, title: str = "") -> None:
    """Every series of a ``metrics.jsonl`` over its steps."""
    lines = [json.loads(line) for line in Path(metrics).read_text().splitlines() if line.strip()]
    names = [k for k in lines[-1] if k not in ("step", "steps_per_s", "skipped")] if lines else []
    figure, axes = _figure(max(len(names), 1), height=1.8)
    for axis, name in zip(axes, names, strict=False):
        axis.plot([row["step"] for row in lines if name in row], [row[name] for row in lines if name in row], lw=1)
        axis.set(ylabel=name)
        axis.grid(alpha=0.3)
    if names:
        axes[0].set_title(title)
        axes[-1].set_xlabel("step")
    with atomic.written(path) as part:
        figure.savefig(part, dpi=100, format=Path(path).suffix[1:] or "png")


def _saved(figure, path: str | Path) -> None:
    with atomic.written(path) as part:
        figure.savefig(part, dpi=110, format=Path(path).suffix[1:] or "png")


def bars(figures: Mapping[str, Mapping[str, Mapping[str, float]]], path: str | Path, *, title: str) -> None:
    """Bars with intervals: ``figures`` maps a label to series, a series name to value, low and high."""
    names = list(dict.fromkeys(name for series in figures.values() for name in series))
    figure, (axis,) = _figure(1, width=max(6.0, 1.2 * len(figures)), height=3.6)
    width = 0.8 / max(len(names), 1)
    for k, name in enumerate(names):
        at = [i for i, series in enumerate(figures.values()) if name in series and series[name]["value"] is not None]
        chosen = [list(figures.values())[i][name] for i in at]
        low, high = ([abs(c[end] - c["value"]) for c in chosen] for end in ("low", "high"))
        places = [i + (k - (len(names) - 1) / 2) * width for i in at]
        axis.bar(places, [c["value"] for c in chosen], width, yerr=[low, high], capsize=3, label=name)
    axis.set_xticks(range(len(figures)), list(figures), rotation=20, ha="right")
    axis.set(title=title)
    axis.grid(axis="y", alpha=0.3)
    if len(names) > 1:
        axis.legend()
    _saved(figure, path)


def radar(
    figures: Mapping[str, Mapping[str, float]], path: str | Path, *, title: str, limits: tuple[float, float]
) -> None:
    """One closed line per series over the same dimensions: ``figures`` maps a series to dimension -> value."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dimensions = list(dict.fromkeys(name for series in figures.values() for name in series))
    angles = [2 * np.pi * i / len(dimensions) for i in range(len(dimensions))]
    figure = Figure(figsize=(7.0, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot(projection="polar")
    for name, series in figures.items():
        values = [series.get(dimension, np.nan) for dimension in dimensions]
        (line,) = axis.plot([*angles, angles[0]], [*values, values[0]], lw=1.5, label=name)
        axis.fill([*angles, angles[0]], [*values, values[0]], color=line.get_color(), alpha=0.1)
    axis.set_xticks(angles, dimensions)
    axis.set_ylim(*limits)
    axis.set_title(title)
    if len(figures) > 1:
        axis.legend(loc="upper right", bbox_to_anchor=(1.3, 1.1))
    _saved(figure, path)
