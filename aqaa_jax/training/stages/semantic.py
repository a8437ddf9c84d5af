"""The semantic tokenizer: S3 encoder, quantiser inside, trained on phones, on what the mel looks like and on pitch.

Ours; the published one comes from ASR training of CosyVoice (arXiv 2407.05407, section 2.1), where the quantiser
sits inside the encoder as it does here. The mel and pitch terms make the codes carry manner and melody, which the
vocoder has no other source for (with the mel term alone a high and a low voice came out alike). The quantiser
starts from k-means after a warm-up; codes that fall out of use are moved onto live vectors, so the codebook stays
alive. What stands behind the quantiser is for training only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aqaa_jax.codec.quantize import Codebook, l2_normalise
from aqaa_jax.codec.s3 import STRIDE, SemanticBlock, SemanticEncoder, count_vectors
from aqaa_jax.config import SemanticConfig
from aqaa_jax.data.order import Order
from aqaa_jax.data.speech import Labelled
from aqaa_jax.losses.cross_entropy import cross_entropy
from aqaa_jax.losses.vq import codebook_and_commitment, straight_through
from aqaa_jax.nn.linear import Linear
from aqaa_jax.nn.params import normal
from aqaa_jax.sharding.axes import EMBED, FEATURES
from aqaa_jax.training.augment import augment, warp_factors, warp_mels
from aqaa_jax.training.kmeans import kmeans
from aqaa_jax.training.stages.phones import held_out_means, label_ratio, phone_batch, phone_terms
from aqaa_jax.training.state import TrainState
from aqaa_jax.training.step import Terms

WARM_UP = 0.3  # share of the steps before the quantiser is switched on
REVIVE_EVERY = 100  # steps
REVIVE_UNTIL = 0.85  # share of the steps after which codes stay where they are
COMMITMENT = 0.25
WARP = 0.14  # of the mel axis, either way
# Pitch is told in steps: a cross-entropy has gradients of the size of the phones', a regression in octaves had not.
LOWEST, STEPS_PER_OCTAVE, PITCH_STEPS = -1.6, 6, 18  # octaves above PITCH_ORIGIN: 66 to 528 Hz
SAMPLE_BATCHES = 24  # batches whose vectors start or revive the codebook


class SemanticModel(nnx.Module):
    """Encoder, codebook, one block behind it, phone, mel and pitch heads."""

    def __init__(self, config: SemanticConfig, phones: int, ratio: int, *, rngs: nnx.Rngs):
        self.encoder = SemanticEncoder(config, rngs=rngs)
        self.codebook = Codebook(config.codes, config.embed, normalise=True, rngs=rngs)
        self.enter = Linear(config.embed, config.embed, (EMBED, EMBED), rngs=rngs)
        self.block = SemanticBlock(config, rngs=rngs, init=normal(0.02))
        self.ctc = Linear(config.embed, ratio * phones, (EMBED, FEATURES), rngs=rngs)
        self.frame = Linear(config.embed, ratio * phones, (EMBED, FEATURES), rngs=rngs)
        self.mel = Linear(config.embed, STRIDE * config.num_mels, (EMBED, FEATURES), rngs=rngs)
        self.pitch = Linear(config.embed, PITCH_STEPS, (EMBED, FEATURES), rngs=rngs)
        self.phones = phones

    def encode(self, mel_BTM: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """Unit vectors before quantisation."""
        return l2_normalise(self.encoder(mel_BTM, lengths_B))

    def decode(self, x_BUD: jax.Array, lengths_B: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """CTC logits, frame logits, mel frames and pitch logits from (quantised) vectors."""
        B, U, D = x_BUD.shape
        bias_BU = jnp.where(jnp.arange(U)[None] < lengths_B[:, None], 0.0, -1e30)
        h_BUD = self.block(self.enter(x_BUD * D**0.5), bias_BU)
        heads = self.ctc(h_BUD), self.frame(h_BUD)
        ctc, frame = (a.reshape(B, -1, self.phones) for a in heads)
        return ctc, frame, self.mel(h_BUD).reshape(B, U * STRIDE, -1), self.pitch(h_BUD)


@dataclass(frozen=True)
class SemanticStage:
    """``length`` counts 25 Hz vectors; features have ``4 * length`` frames at most."""

    config: SemanticConfig
    phones: int
    train: Sequence[Labelled]
    held_out: Sequence[Labelled]
    rows: int
    length: int
    seed: int
    steps: int
    name: str = "semantic"
    weights: Mapping[str, float] = field(
        default_factory=lambda: {"ctc": 1.0, "frame": 1.0, "mel": 3.0, "pitch": 0.5, "quantiser": 1.0}
    )

    @property
    def ratio(self) -> int:
        return label_ratio(100 / STRIDE)

    def init(self, key: jax.Array) -> SemanticModel:
        return SemanticModel(self.config, self.phones, self.ratio, rngs=nnx.Rngs(key))

    def batch(self, step: int) -> dict[str, Any]:
        batch = self._rows(self.train, Order(len(self.train), self.seed), step)
        return {**batch, "quantise": np.float32(step >= int(WARM_UP * self.steps))}

    def _rows(self, data: Sequence[Labelled], order: Order, step: int) -> dict[str, Any]:
        batch = phone_batch(data, order, step, self.rows, self.length * STRIDE, 1)
        frames = np.full((self.rows, self.length * self.ratio), -1, np.int32)
        width = min(frames.shape[1], batch["frames"].shape[1])
        frames[:, :width] = batch["frames"][:, :width]
        pitch = np.full((self.rows, self.length), np.nan, np.float32)
        for row, i in zip(pitch, order.batch(step, self.rows), strict=True):
            tones = data[i].pitch[: self.length]
            row[: len(tones)] = tones
        return {**batch, "frames": frames, "pitch": pitch}

    def loss(self, model: SemanticModel, batch: Mapping[str, Any], key: jax.Array) -> Terms:
        warp_key, key = jax.random.split(key)
        factor_B = warp_factors(warp_key, len(batch["features"]), WARP)
        x_BTM = augment(warp_mels(batch["features"], factor_B), key, warp=0.0, tilt=0.15, time_mask=24, noise=0.03)
        heard = {**batch, "pitch": batch["pitch"] - jnp.log2(factor_B)[:, None]}  # what moved down sounds lower
        return self._terms(model, x_BTM, heard, batch["quantise"])

    def _terms(self, model: SemanticModel, x_BTM: jax.Array, batch: Mapping[str, Any], quantise: Any) -> Terms:
        vectors_BUD = model.encode(x_BTM, batch["lengths"])
        lengths_B = count_vectors(batch["lengths"])
        mask_BU = (jnp.arange(vectors_BUD.shape[1])[None] < lengths_B[:, None]).astype(jnp.float32)
        codes_BU = model.codebook(jax.lax.stop_gradient(vectors_BUD))
        nearest_BUD = model.codebook.lookup(codes_BU)
        value, count = codebook_and_commitment(vectors_BUD, nearest_BUD, mask_BU, COMMITMENT)
        chosen_BUD = jnp.where(quantise > 0, straight_through(vectors_BUD, nearest_BUD), vectors_BUD)
        ctc, frame, mel_BTM, pitch_BUP = model.decode(chosen_BUD, lengths_B)
        at_codes: Any = {**batch, "features": vectors_BUD, "lengths": lengths_B}
        terms = phone_terms(ctc, frame, at_codes)
        real_BT1 = (jnp.arange(x_BTM.shape[1])[None] < batch["lengths"][:, None])[..., None]
        error = jnp.abs(mel_BTM - batch["features"]) * real_BT1
        voiced_BU = jnp.isfinite(batch["pitch"]) * mask_BU
        steps_BU = jnp.floor((jnp.nan_to_num(batch["pitch"]) - LOWEST) * STEPS_PER_OCTAVE)
        tones_BU = jnp.clip(steps_BU, 0, PITCH_STEPS - 1).astype(jnp.int32)
        used_Q = jnp.zeros(self.config.codes).at[codes_BU].max(mask_BU)
        return {
            **terms,
            "mel": (jnp.sum(error), jnp.sum(real_BT1) * error.shape[-1]),
            "pitch": cross_entropy(pitch_BUP, tones_BU, voiced_BU),
            "quantiser": (value * quantise, count),
            "codes_in_batch": (jnp.sum(used_Q), jnp.ones(())),
        }

    def adjust(self, state: TrainState, step: int) -> TrainState:
        """Start the codebook at the end of the warm-up, and move idle codes now and then."""
        warm = int(WARM_UP * self.steps)
        if step == warm:
            table, _ = kmeans(self._vectors(state.model, step)[0], self.config.codes, iterations=8, seed=self.seed)
        elif step > warm and (step - warm) % REVIVE_EVERY == 0 and step < REVIVE_UNTIL * self.steps:
            vectors, codes = self._vectors(state.model, step)
            table, rng = np.array(state.model.codebook.table[...]), np.random.default_rng([self.seed, step])
            idle = np.setdiff1d(np.arange(self.config.codes), codes)
            table[idle] = vectors[rng.choice(len(vectors), len(idle), replace=len(idle) > len(vectors))]
        else:
            return state
        state.model.codebook.table.set_value(jnp.asarray(table, jnp.float32))
        return state

    def _vectors(self, model: SemanticModel, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors of the real frames of some training batches, and their codes."""
        vectors, codes = [], []
        for i in range(SAMPLE_BATCHES):
            batch = self._rows(self.train, Order(len(self.train), self.seed + 1), step + i)
            x_BUD, codes_BU = _encode(model, batch["features"], batch["lengths"])
            real = np.arange(x_BUD.shape[1])[None] < np.asarray(count_vectors(batch["lengths"]))[:, None]
            vectors.append(np.asarray(x_BUD)[real])
            codes.append(np.asarray(codes_BU)[real])
        return np.concatenate(vectors), np.concatenate(codes)

    def evaluate(self, model: SemanticModel) -> dict[str, float]:
        run = jax.jit(lambda m, b: self._terms(m, b["features"], b, jnp.ones(())))
        order = Order(len(self.held_out), 0)
        steps = range(len(self.held_out) // self.rows)
        return held_out_means(run(model, self._rows(self.held_out, order, step)) for step in steps)


@jax.jit
def _encode(model: SemanticModel, mel_BTM: jax.Array, lengths_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BUD = model.encode(mel_BTM, lengths_B)
    return x_BUD, model.codebook(x_BUD)
