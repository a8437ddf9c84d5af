"""A waveform to the vector of its speaker, by the published CAM++ network (``campplus.onnx``).

The network runs as it is published, through onnxruntime (extra ``[voice]``, imported on use): it is small, runs once
per voice, and is not trained here. Features as in ``cosyvoice/cli/frontend.py``: Kaldi filter bank of 80 bins with the
Povey window and no dither, of samples in [-1, 1] (not of 16-bit values), less its mean over time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from aqaa_jax.dsp import fbank

SAMPLE_RATE, NUM_MELS = 16000, 80


def features(wav_W: Float[np.ndarray, "W"]) -> Float[np.ndarray, "T M"]:
    """What the network reads of a waveform at 16 kHz: log-mel energies, 100 frames a second, zero mean per bin.

    Raises ``ValueError`` for a waveform shorter than one frame of 25 ms.
    """
    energies_TM = fbank.log_energies(wav_W, SAMPLE_RATE, NUM_MELS, povey=True)
    if not len(energies_TM):
        raise ValueError(f"{len(wav_W)} samples are too few for a speaker vector; expected at least 400")
    return energies_TM - energies_TM.mean(axis=0, keepdims=True)


def speaker_vector(path: str | Path, wav_W: Float[np.ndarray, "W"], size: int) -> Float[np.ndarray, "D"]:
    """The speaker vector, ``size`` float32 values (published: 192), of a waveform at 16 kHz.

    ``path`` is the ONNX file: frames ``[1, T, 80]`` in, a vector out. Raises ``ValueError`` naming the file when it
    cannot be run, gives a vector of another size or one that is not finite, or when onnxruntime is not installed.
    """
    session = _session(Path(path))
    frames_1TM = np.ascontiguousarray(features(wav_W)[None], np.float32)
    try:
        out = session.run(None, {session.get_inputs()[0].name: frames_1TM})
    except Exception as error:  # onnxruntime has an exception class per kind of failure, none of them public
        shape = list(frames_1TM.shape)
        raise ValueError(f"{path}: does not run on frames of shape {shape} ({_line(error)})") from None
    vector_D = np.asarray(out[0], np.float32).reshape(-1)
    if len(vector_D) != size:
        raise ValueError(f"{path}: gives a speaker vector of {len(vector_D)} values; the flow expects {size}")
    if not np.isfinite(vector_D).all():
        raise ValueError(f"{path}: gives a speaker vector that is not finite")
    return vector_D


def _session(path: Path) -> Any:
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"{path}: running it needs onnxruntime: pip install 'aqaa_jax[voice]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: it would warn of every constant it folds
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"{path}: not a network that onnxruntime can load ({_line(error)})") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
