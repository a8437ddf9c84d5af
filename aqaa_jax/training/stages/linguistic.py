"""The linguistic tokenizer: SANM encoder trained on phones (CTC and per-frame), then k-means on its output.

Ours; the published encoder comes from Paraformer ASR training. The heads are for training only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aqaa_jax.codec.paraformer import LinguisticEncoder
from aqaa_jax.config import LinguisticConfig
from aqaa_jax.data.order import Order, pad_stack
from aqaa_jax.data.speech import Labelled
from aqaa_jax.nn.linear import Linear
from aqaa_jax.sharding.axes import EMBED, FEATURES
from aqaa_jax.training.augment import augment
from aqaa_jax.training.stages.phones import PhoneBatch, held_out_means, label_ratio, phone_batch, phone_terms
from aqaa_jax.training.state import TrainState
from aqaa_jax.training.step import Terms


class LinguisticModel(nnx.Module):
    """Encoder and phone heads; each 60 ms frame predicts three 20 ms labels."""

    def __init__(self, config: LinguisticConfig, phones: int, ratio: int, *, rngs: nnx.Rngs):
        self.encoder = LinguisticEncoder(config, rngs=rngs)
        self.ctc = Linear(config.embed, ratio * phones, (EMBED, FEATURES), rngs=rngs)
        self.frame = Linear(config.embed, ratio * phones, (EMBED, FEATURES), rngs=rngs)
        self.phones = phones

    def encode(self, features_BTM: jax.Array, lengths_B: jax.Array) -> jax.Array:
        return self.encoder(self.encoder.normalise(features_BTM), lengths_B)

    def __call__(self, features_BTM: jax.Array, lengths_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_BTD = self.encode(features_BTM, lengths_B)
        B = x_BTD.shape[0]
        return self.ctc(x_BTD).reshape(B, -1, self.phones), self.frame(x_BTD).reshape(B, -1, self.phones)


@dataclass(frozen=True)
class LinguisticStage:
    """``train`` and ``held_out`` are labelled LFR features of at most ``length`` frames."""

    config: LinguisticConfig
    phones: int
    train: Sequence[Labelled]
    held_out: Sequence[Labelled]
    rows: int
    length: int
    seed: int
    cmvn: tuple[np.ndarray, np.ndarray]  # shift, scale of the raw features
    name: str = "linguistic"
    weights: Mapping[str, float] = field(default_factory=lambda: {"ctc": 1.0, "frame": 1.0})

    @property
    def ratio(self) -> int:
        return label_ratio(self.config.sample_rate / 160 / self.config.lfr_hop)

    def init(self, key: jax.Array) -> LinguisticModel:
        model = LinguisticModel(self.config, self.phones, self.ratio, rngs=nnx.Rngs(key))
        model.encoder.cmvn_shift.set_value(jnp.asarray(self.cmvn[0]))
        model.encoder.cmvn_scale.set_value(jnp.asarray(self.cmvn[1]))
        return model

    def batch(self, step: int) -> PhoneBatch:
        order = Order(len(self.train), self.seed)
        return phone_batch(self.train, order, step, self.rows, self.length, self.ratio)

    def loss(self, model: LinguisticModel, batch: PhoneBatch, key: jax.Array) -> Terms:
        B, T, M = batch["features"].shape
        stacked = batch["features"].reshape(B, T * self.config.lfr_stack, self.config.num_mels)
        warped = augment(stacked, key, tilt=1.0, time_mask=3 * self.config.lfr_stack, noise=0.3)
        return phone_terms(*model(warped.reshape(B, T, M), batch["lengths"]), batch)

    def adjust(self, state: TrainState, step: int) -> TrainState:
        return state

    def evaluate(self, model: LinguisticModel) -> dict[str, float]:
        @jax.jit
        def run(model: LinguisticModel, batch: PhoneBatch) -> Terms:
            return phone_terms(*model(batch["features"], batch["lengths"]), batch)

        order = Order(len(self.held_out), 0)
        steps = range(len(self.held_out) // self.rows)
        return held_out_means(
            run(model, phone_batch(self.held_out, order, step, self.rows, self.length, self.ratio)) for step in steps
        )


def encoded_frames(model: LinguisticModel, data: Sequence[Labelled], rows: int, length: int) -> np.ndarray:
    """Encoder output of every real frame: [N, embed], for k-means."""
    run = jax.jit(lambda m, x, n: m.encode(x, n))
    out = []
    for start in range(0, len(data) // rows * rows, rows):
        chosen = [data[i] for i in range(start, start + rows)]
        lengths = np.array([min(len(c.features), length) for c in chosen], np.int32)
        x = run(model, jnp.asarray(pad_stack([c.features for c in chosen], length), jnp.float32), lengths)
        out += [np.asarray(x[i, :n]) for i, n in enumerate(lengths)]
    return np.concatenate(out)
