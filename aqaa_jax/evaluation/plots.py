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
