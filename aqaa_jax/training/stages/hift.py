"""HiFT: mel to waveform by multi-resolution STFT and mel losses, F0 by regression.

The published vocoder is also trained against discriminators; they are left out here (optional by the design).
The source is driven by the measured F0 during training, so that the F0 predictor and the generator learn apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aqaa_jax.config import HiftConfig, MelConfig
from aqaa_jax.data.order import Order
from aqaa_jax.losses import waveform
from aqaa_jax.shapes import BatchArray
from aqaa_jax.training.samples import Sound
from aqaa_jax.training.state import TrainState
from aqaa_jax.training.step import Terms
from aqaa_jax.vocoder.hift import Hift


class MelWav(NamedTuple):
    """One utterance: log-mel [T, M], F0 in Hz [T] (0 where unvoiced), waveform [T * hop]."""

    mel: np.ndarray
    f0: np.ndarray
    wav: np.ndarray


class HiftBatch(TypedDict):
    mel: BatchArray  # float32 [B, T, M]
    f0: BatchArray  # float32 [B, T]
    wav: BatchArray  # float32 [B, T * hop]


@dataclass(frozen=True)
class HiftStage:
    """Crops of ``length`` mel frames; utterances shorter than that must be left out before."""

    config: HiftConfig
    mel: MelConfig
    train: Sequence[MelWav]
    held_out: Sequence[MelWav]
    rows: int
    length: int
    seed: int
    name: str = "hift"
    weights: Mapping[str, float] = field(default_factory=lambda: {"stft": 1.0, "mel": 1.0, "f0": 1.0})

    def init(self, key: jax.Array) -> Hift:
        return Hift(self.config, rngs=nnx.Rngs(key))

    def batch(self, step: int) -> HiftBatch:
        rng = np.random.default_rng([self.seed, step])
        chosen = [self.train[i] for i in Order(len(self.train), self.seed).batch(step, self.rows)]
        return self._crop(chosen, [int(rng.integers(0, len(c.mel) - self.length + 1)) for c in chosen])

    def _crop(self, items: Sequence[MelWav], starts: Sequence[int]) -> HiftBatch:
        hop, n = self.mel.hop, self.length
        pairs = list(zip(items, starts, strict=True))
        return {
            "mel": np.stack([c.mel[s : s + n] for c, s in pairs]).astype(np.float32),
            "f0": np.stack([c.f0[s : s + n] for c, s in pairs]).astype(np.float32),
            "wav": np.stack([c.wav[s * hop : (s + n) * hop] for c, s in pairs]).astype(np.float32),
        }

    def _made(self, model: Hift, batch: HiftBatch, key: jax.Array) -> jax.Array:
        """Waveforms [B, W] from the true mel and F0."""
        B, W = batch["wav"].shape
        harmonics = self.config.harmonics + 1
        phase_key, noise_key = jax.random.split(key)
        phase_BC = jax.random.uniform(phase_key, (B, harmonics), minval=-jnp.pi, maxval=jnp.pi)
        noise_BWC = jax.random.normal(noise_key, (B, W, harmonics))
        return model.decode(batch["mel"], model.source(batch["f0"], phase_BC, noise_BWC))

    def loss(self, model: Hift, batch: HiftBatch, key: jax.Array) -> Terms:
        wav_BW = self._made(model, batch, key)
        f0_error_BT = jnp.abs(model.f0(batch["mel"]) - batch["f0"]) / 100.0
        return {
            "stft": waveform.multi_resolution_stft(wav_BW, batch["wav"]),
            "mel": waveform.mel_l1(wav_BW, batch["wav"], self.mel),
            "f0": (jnp.sum(f0_error_BT), jnp.asarray(f0_error_BT.size, jnp.float32)),
        }

    def adjust(self, state: TrainState, step: int) -> TrainState:
        return state

    def evaluate(self, model: Hift) -> dict[str, float]:
        terms = jax.jit(self.loss)(model, self._held_out(self.rows), jax.random.key(0))
        return {f"held_out_{name}": float(value / count) for name, (value, count) in terms.items()}

    def samples(self, model: Hift) -> dict[str, Sound]:
        """The beginning of the first held-out utterance as the model makes it, and as it is."""
        batch = self._held_out(1)
        made = jax.jit(self._made)(model, batch, jax.random.key(0))
        waves = {"wav": np.asarray(made)[0], "wav_true": batch["wav"][0]}
        return {name: Sound(wav_W, self.mel.sample_rate) for name, wav_W in waves.items()}

    def _held_out(self, rows: int) -> HiftBatch:
        items = self.held_out[:rows]
        return self._crop(items, [0] * len(items))
