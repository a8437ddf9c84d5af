"""The decoder: next-token prediction on the answer, uniform over text and audio (AQAA paper, section 3.2, Eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aqaa_jax.config import DecoderConfig, VocabConfig
from aqaa_jax.data.language import LanguageBatch
from aqaa_jax.decoder.flops import model_flops
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.losses.cross_entropy import target_log_probs
from aqaa_jax.losses.experts import expert_terms
from aqaa_jax.losses.masked import masked_sum_count
from aqaa_jax.nn.moe import balanced
from aqaa_jax.sharding.manual import gathered
from aqaa_jax.training.state import TrainState
from aqaa_jax.training.step import Terms


@dataclass(frozen=True)
class LanguageStage:
    """One of pretrain / sft: the same loss over another mixture."""

    counted: ClassVar[str] = "answer"
    name: str
    decoder: DecoderConfig
    vocab: VocabConfig
    batches: Callable[[int], LanguageBatch]  # of a step: a pure function (data/language.py, data/reader.py)
    head_chunk: int = 0  # positions of a row whose logits exist at one time; 0: all
    audio_rows: np.ndarray | None = None  # [linguistic + semantic, embed]: initial audio embeddings
    figures: Callable[[Decoder], dict[str, float]] = lambda model: {}

    @property
    def weights(self) -> Mapping[str, float]:
        """The loss on the answers and, where there are experts, what keeps them in balance."""
        return {"answer": 1.0, **expert_weights(self.decoder)}

    def init(self, key: jax.Array) -> Decoder:
        model = Decoder(self.decoder, rngs=nnx.Rngs(key))
        return model if self.audio_rows is None else _with_audio_rows(model, self.vocab, self.audio_rows)

    def batch(self, step: int) -> LanguageBatch:
        return self.batches(step)

    @property
    def local(self) -> bool:
        """Whether the batches are this process's rows alone."""
        return getattr(self.batches, "hosts", 1) > 1

    def flops(self, batch: LanguageBatch) -> float:
        return model_flops(self.decoder, *batch["tokens"].shape)

    def loss(self, model: Decoder, batch: LanguageBatch, key: jax.Array) -> Terms:
        log_probs_BK, right_BK, experts = target_scores(model, batch, self.head_chunk)
        answers = answer_terms(log_probs_BK, right_BK, batch["targets"], batch["loss_mask"], self.vocab)
        return {**experts, **answers}

    def settle(self, new: Decoder, old: Decoder, means: Mapping[str, jax.Array]) -> Decoder:
        return settled(self.decoder, new, old, means)

    def adjust(self, state: TrainState, step: int) -> TrainState:
        return state

    def evaluate(self, model: Decoder) -> dict[str, float]:
        return self.figures(model)


def target_scores(model: Decoder, batch: LanguageBatch, chunk: int = 0) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """Of every target [B, K]: log p, float32, and whether it is the likeliest id; and the terms of the experts."""
    segments_BL = batch["segment_ids"]
    hidden_BLD, stats = model.hidden(batch["tokens"], segment_ids_BL=segments_BL, with_aux=True)
    hidden_BKD = jnp.take_along_axis(hidden_BLD, batch["source"][..., None], axis=1)
    head_DV = gathered(model.head, hidden_BKD.dtype)
    log_probs_BK, right_BK = target_log_probs(hidden_BKD, head_DV, batch["targets"], chunk=chunk)
    experts = {} if stats is None else expert_terms(stats, jnp.sum(segments_BL != 0, dtype=jnp.float32))
    return log_probs_BK, right_BK, experts


def expert_weights(decoder: DecoderConfig) -> dict[str, float]:
    """What keeps the experts in balance, where there are experts."""
    c = decoder.experts
    return {} if c is None else {"expert_balance": c.balance_weight, "expert_z": c.router_z_weight}


def _router_bias(decoder: Decoder) -> nnx.Variable:
    mlp: Any = decoder.blocks.mlp  # experts, in a decoder that has them
    return mlp.bias


def settled(decoder: DecoderConfig, new: Decoder, old: Decoder, means: Mapping[str, jax.Array]) -> Decoder:
    """``new`` with the biases of its routers those of ``old``, moved against the load of their experts."""
    if decoder.experts is None or not decoder.experts.bias_rate:
        return new
    new = jax.tree.map(lambda x: x, new)
    rate = decoder.experts.bias_rate
    after, before = _router_bias(new), _router_bias(old)
    after.set_value(balanced(before[...], means["expert_load"], rate))
    return new


def answer_terms(log_probs: Any, right: Any, targets: Any, loss_mask: Any, vocab: VocabConfig) -> Terms:
    """The loss over all targets, and loss and accuracy of each stream for the log."""
    semantic_start = vocab.audio_start + vocab.linguistic
    streams = {
        "text": targets < vocab.audio_start,
        "linguistic": (targets >= vocab.audio_start) & (targets < semantic_start),
        "semantic": targets >= semantic_start,
    }
    terms = {"answer": masked_sum_count(-log_probs, loss_mask)}
    for name, member in streams.items():
        mask = loss_mask * member
        terms[f"{name}_loss"] = masked_sum_count(-jax.lax.stop_gradient(log_probs), mask)
        terms[f"{name}_accuracy"] = masked_sum_count(right, mask)
    return terms


def _with_audio_rows(model: Decoder, vocab: VocabConfig, rows: np.ndarray) -> Decoder:
    """Replace the audio part of the embedding and of the head by ``rows``, at the scale they were born with."""

    def placed(table: jax.Array) -> jax.Array:
        part = slice(vocab.audio_start, vocab.audio_start + len(rows))
        scaled = rows / rows.std() * jnp.std(table[part])
        return table.at[part].set(scaled.astype(table.dtype))

    model.embedding.table.set_value(placed(model.embedding.table[...]))
    return model
