"""The language loss on rows that are not trained on."""

from __future__ import annotations

from collections.abc import Callable

import jax

from aqaa_jax.config import VocabConfig
from aqaa_jax.data.language import LanguageBatch
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.sharding.mesh import make_mesh
from aqaa_jax.sharding.partition import partitioning, place_rows
from aqaa_jax.sharding.rules import rules_of
from aqaa_jax.training.config import StageConfig
from aqaa_jax.training.stages.language import answer_terms, target_scores
from aqaa_jax.training.step import Terms, totals


def held_out_figures(
    config: StageConfig, vocab: VocabConfig, batches: Callable[[int], LanguageBatch]
) -> Callable[[Decoder], dict[str, float]]:
    """``figures(model)``: means over ``config.held_out_steps`` batches, ``held_out_answer`` and each stream's.

    ``batches(step)`` gives all rows of a batch; they are placed as those of training are.
    """

    @jax.jit
    def terms_of(model: Decoder, batch: LanguageBatch) -> Terms:
        log_probs_BK, right_BK, _ = target_scores(model, batch, config.head_chunk)
        return answer_terms(log_probs_BK, right_BK, batch["targets"], batch["loss_mask"], vocab)

    def figures(model: Decoder) -> dict[str, float]:
        mesh, table = make_mesh(config.loop.sharding.mesh), rules_of(config.loop.sharding)
        with partitioning(mesh, table):
            steps = range(config.held_out_steps)
            sums = totals(terms_of(model, place_rows(batches(step), mesh, table)) for step in steps)
        return {f"held_out_{name}": value / count for name, (value, count) in sums.items() if count}

    return figures
