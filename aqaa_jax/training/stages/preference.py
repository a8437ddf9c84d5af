"""The decoder learns which of two answers is better, from the text alone (AQAA paper, section 3.3, Eq. 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from aqaa_jax.config import DecoderConfig
from aqaa_jax.data.pairs import PairBatch
from aqaa_jax.decoder.flops import model_flops
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.losses.dpo import answer_log_ratios, preference
from aqaa_jax.losses.masked import masked_sum_count
from aqaa_jax.training.config import PreferenceConfig
from aqaa_jax.training.stages.language import expert_weights, settled, target_scores
from aqaa_jax.training.state import TrainState
from aqaa_jax.training.step import Terms

TASK = "pairs"  # the one task of the plan


@dataclass(frozen=True)
class PreferenceStage:
    """DPO in the loop of every other stage; the reference is in the batch, so a step runs one model, forward and back.

    Both answers of a pair stand in one row, each behind the prompt, as segments that do not see one another. Only
    counted targets go through the head. A batch holds the reference's log-probabilities (``training/reference.py``).
    """

    name: str
    decoder: DecoderConfig
    config: PreferenceConfig
    batches: Callable[[int], PairBatch]  # of a step: a pure function (data/pairs.py, data/packed_pairs.py)
    head_chunk: int = 0  # positions of a row whose logits exist at one time; 0: all

    @property
    def weights(self) -> Mapping[str, float]:
        return {"preference": 1.0, **expert_weights(self.decoder)}

    def init(self, key: jax.Array) -> Decoder:
        return Decoder(self.decoder, rngs=nnx.Rngs(key))

    def batch(self, step: int) -> PairBatch:
        return self.batches(step)

    def flops(self, batch: PairBatch) -> float:
        return model_flops(self.decoder, *batch["tokens"].shape)

    def loss(self, model: Decoder, batch: PairBatch, key: jax.Array) -> Terms:
        log_probs_BK, _, experts = target_scores(model, batch, self.head_chunk)
        return {**experts, **preference_terms(log_probs_BK, batch, self.config)}

    def settle(self, new: Decoder, old: Decoder, means: Mapping[str, jax.Array]) -> Decoder:
        return settled(self.decoder, new, old, means)

    def adjust(self, state: TrainState, step: int) -> TrainState:
        return state

    def evaluate(self, model: Decoder) -> dict[str, float]:
        return {}


def preference_terms(policy_BK: jax.Array, batch: PairBatch, config: PreferenceConfig) -> Terms:
    """The loss per pair; rewards, how often the chosen answer wins, and its own loss per token for the log."""
    there_BP = batch["pairs"]
    ratios_BA = answer_log_ratios(
        policy_BK,
        batch["reference"],
        batch["loss_mask"],
        batch["answer"],
        2 * there_BP.shape[1],
        length_normalised=config.length_normalised,
    )
    chosen_BP, rejected_BP = ratios_BA[:, 0::2], ratios_BA[:, 1::2]
    out = preference(chosen_BP, rejected_BP, beta=config.beta, label_smoothing=config.label_smoothing, kind=config.kind)
    figures = {
        "preference": out.losses_B,
        "chosen_reward": out.chosen_rewards_B,
        "rejected_reward": out.rejected_rewards_B,
        "preferred": (out.chosen_rewards_B > out.rejected_rewards_B).astype(jnp.float32),
    }
    of_chosen_BK = batch["loss_mask"] * (batch["answer"] % 2 == 1)
    return {
        **{name: masked_sum_count(values_BP, there_BP) for name, values_BP in figures.items()},
        "chosen_nll": masked_sum_count(-policy_BK, of_chosen_BK),
    }
