"""The decoder: next-token prediction on the answer, uniform over text and audio (AQAA paper, section 3.2, Eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aqaa_jax.config import DecoderConfig, VocabConfig
from aqaa_jax.data.language import LanguageBatch
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.losses.cross_entropy import cross_entropy
from aqaa_jax.training.state import TrainState
from aqaa_jax.training.step import Terms


@dataclass(frozen=True)
class LanguageStage:
    """One of pretrain / sft: the same loss over another mixture."""

    name: str
    decoder: DecoderConfig
    vocab: VocabConfig
    batches: Callable[[int], LanguageBatch]  # of a step: a pure function (data/language.py, data/reader.py)
    audio_rows: np.ndarray | None = None  # [linguistic + semantic, embed]: initial audio embeddings
    weights: Mapping[str, float] = field(default_factory=lambda: {"answer": 1.0})
    figures: Callable[[Decoder], dict[str, float]] = lambda model: {}

    def init(self, key: jax.Array) -> Decoder:
        model = Decoder(self.decoder, rngs=nnx.Rngs(key))
        return model if self.audio_rows is None else _with_audio_rows(model, self.vocab, self.audio_rows)

    def batch(self, step: int) -> LanguageBatch:
        return self.batches(step)

    def loss(self, model: Decoder, batch: LanguageBatch, key: jax.Array) -> Terms:
        hidden_BLD = model.hidden(batch["tokens"], segment_ids_BL=batch["segment_ids"])
        source_BK1 = batch["source"][..., None]
        logits_BKV = model.logits(jnp.take_along_axis(hidden_BLD, source_BK1, axis=1))
        return answer_terms(logits_BKV, batch["targets"], batch["loss_mask"], self.vocab)

    def adjust(self, state: TrainState, step: int) -> TrainState:
        return state

    def evaluate(self, model: Decoder) -> dict[str, float]:
        return self.figures(model)


def answer_terms(logits: Any, targets: Any, loss_mask: Any, vocab: VocabConfig) -> Terms:
    """The loss over all targets, and loss and accuracy of each stream for the log."""
    semantic_start = vocab.audio_start + vocab.linguistic
    streams = {
        "text": targets < vocab.audio_start,
        "linguistic": (targets >= vocab.audio_start) & (targets < semantic_start),
        "semantic": targets >= semantic_start,
    }
    right = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    terms = {"answer": cross_entropy(logits, targets, loss_mask)}
    for name, member in streams.items():
        mask = loss_mask * member
        terms[f"{name}_accuracy"] = (jnp.sum(right * mask), jnp.sum(mask))
    return terms


def _with_audio_rows(model: Decoder, vocab: VocabConfig, rows: np.ndarray) -> Decoder:
    """Replace the audio part of the embedding and of the head by ``rows``, at the scale they were born with."""

    def placed(table: jax.Array) -> jax.Array:
        part = slice(vocab.audio_start, vocab.audio_start + len(rows))
        scaled = rows / rows.std() * jnp.std(table[part])
        return table.at[part].set(scaled.astype(table.dtype))

    model.embedding.table.set_value(placed(model.embedding.table[...]))
    return model
