"""The flow: optimal-transport conditional flow matching from audio tokens to mel, with the true mel length.

Published loss (``ConditionalCFM.compute_loss``) plus an optional term that pulls the regulator's output ``mu``
towards the mel itself (ours, off by default in ``weights``): a small model then starts from a good guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aqaa_jax.config import FlowConfig
from aqaa_jax.data.order import Order, pad_stack
from aqaa_jax.losses import flow_matching
from aqaa_jax.shapes import BatchArray
from aqaa_jax.training.state import TrainState
from aqaa_jax.training.step import Terms
from aqaa_jax.vocoder.flow import Condition, Flow, mel_frames

GROUP = 5  # ids of one 120 ms group


class TokenMel(NamedTuple):
    """One utterance of the answer voice: woven ids 0 ... 5,119 [whole groups] and its log-mel [T, M]."""

    tokens: np.ndarray
    mel: np.ndarray


class FlowBatch(TypedDict):
    tokens: BatchArray  # int32 [B, L]
    token_lengths: BatchArray  # int32 [B]
    mel: BatchArray  # float32 [B, T, M]
    mel_lengths: BatchArray  # int32 [B]


@dataclass(frozen=True)
class FlowStage:
    """``length`` is the longest row in mel frames; longer utterances are cropped at group boundaries."""

    config: FlowConfig
    train: Sequence[TokenMel]
    held_out: Sequence[TokenMel]
    rows: int
    length: int
    seed: int
    token_rows: np.ndarray | None = None  # [vocab, embed]: initial token embeddings
    name: str = "flow"
    weights: Mapping[str, float] = field(default_factory=lambda: {"velocity": 1.0})

    def init(self, key: jax.Array) -> Flow:
        model = Flow(self.config, rngs=nnx.Rngs(key))
        if self.token_rows is not None:
            model.embedding.table.set_value(jnp.asarray(self.token_rows, jnp.float32))
        return model

    def batch(self, step: int) -> FlowBatch:
        rng = np.random.default_rng([self.seed, step])
        return self._collate([self.train[i] for i in Order(len(self.train), self.seed).batch(step, self.rows)], rng)

    def _collate(self, items: Sequence[TokenMel], rng: np.random.Generator) -> FlowBatch:
        groups = int(self.length / mel_frames(100 * GROUP, self.config) * 100)
        tokens, mels = [], []
        for item in items:
            spare = len(item.tokens) // GROUP - groups
            first = int(rng.integers(0, spare + 1)) if spare > 0 else 0
            chosen = item.tokens[first * GROUP : (first + groups) * GROUP]
            start = round(mel_frames(1000 * GROUP, self.config) / 1000 * first)
            frames = min(mel_frames(len(chosen), self.config), self.length, len(item.mel) - start)
            tokens.append(chosen.astype(np.int32))
            mels.append(item.mel[start : start + frames].astype(np.float32))
        return {
            "tokens": pad_stack(tokens, groups * GROUP),
            "token_lengths": np.array([len(t) for t in tokens], np.int32),
            "mel": pad_stack(mels, self.length),
            "mel_lengths": np.array([len(m) for m in mels], np.int32),
        }

    def loss(self, model: Flow, batch: FlowBatch, key: jax.Array) -> Terms:
        c = self.config
        keys = jax.random.split(key, 4)
        B = batch["mel"].shape[0]
        target_BTM = model.normalise(batch["mel"])
        speaker_BD = jnp.zeros((B, c.speaker_dim))
        given = model.condition(
            batch["tokens"], batch["token_lengths"], batch["mel_lengths"], speaker_BD, frames=self.length
        )
        prompt_BT = flow_matching.prompt_mask(
            keys[0], batch["mel_lengths"], self.length, probability=c.prompt_probability, fraction=c.prompt_fraction
        )
        keep_B = flow_matching.keep_condition(keys[1], B, c.condition_dropout)
        condition = Condition(
            given.mu_BTM * keep_B[:, None, None],
            given.spks_BM * keep_B[:, None],
            target_BTM * prompt_BT[..., None] * keep_B[:, None, None],
            given.mask_BT,
        )
        t_B = flow_matching.flow_times(keys[2], B)
        noise_BTM = c.training_noise * jax.random.normal(keys[3], target_BTM.shape)
        x_BTM, velocity_BTM = flow_matching.path(noise_BTM, target_BTM, t_B, c.sigma_min)
        predicted_BTM = model.velocity(
            x_BTM, condition.mask_BT, condition.mu_BTM, t_B, condition.spks_BM, condition.cond_BTM
        )
        mask_BT1 = given.mask_BT[..., None]
        error_BTM = jnp.abs(given.mu_BTM - target_BTM) * mask_BT1
        return {
            "velocity": flow_matching.velocity_loss(predicted_BTM, velocity_BTM, given.mask_BT),
            "prior": (jnp.sum(error_BTM), jnp.sum(mask_BT1) * target_BTM.shape[-1]),
        }

    def adjust(self, state: TrainState, step: int) -> TrainState:
        return state

    def evaluate(self, model: Flow) -> dict[str, float]:
        """Mean absolute log-mel error (nats) of sampled mels of the first held-out rows."""
        batch = self._held_out(self.rows)
        mask = np.arange(self.length)[None] < batch["mel_lengths"][:, None]
        return {"held_out_mel_l1": float(np.mean(np.abs(self._sampled(model, batch) - batch["mel"])[mask]))}

    def samples(self, model: Flow) -> dict[str, np.ndarray]:
        """The mel of the first held-out row as the model makes it, and as it is."""
        batch = self._held_out(1)
        frames = int(batch["mel_lengths"][0])
        return {"mel": self._sampled(model, batch)[0, :frames], "mel_true": batch["mel"][0, :frames]}

    def _held_out(self, rows: int) -> FlowBatch:
        return self._collate(self.held_out[:rows], np.random.default_rng(0))

    def _sampled(self, model: Flow, batch: FlowBatch) -> np.ndarray:
        noise = self.config.temperature * jax.random.normal(jax.random.key(0), batch["mel"].shape)
        speaker = jnp.zeros((len(batch["mel"]), self.config.speaker_dim))
        sample = jax.jit(lambda m, b: m.sample(b["tokens"], b["token_lengths"], b["mel_lengths"], speaker, noise))
        return np.asarray(sample(model, batch))
