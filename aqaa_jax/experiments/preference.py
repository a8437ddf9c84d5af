"""How a model ranks the answers of pairs that it was not trained on: text alone, and what it cost the audio."""

from __future__ import annotations

import numpy as np

from aqaa_jax.data.pairs import counted, load_pairs
from aqaa_jax.experiments.measures import Cell, Say, Table
from aqaa_jax.tokens.vocab import Vocab
from aqaa_jax.training.language import DECODER, PAIRS, decoder_of
from aqaa_jax.training.reference import reference_log_probs


def table(cell: Cell, say: Say) -> Table:
    """Of every held-out pair (``preference.held_out``). Raises ``ValueError`` if the recipe holds none out."""
    held = cell.recipe.preference.held_out
    if held < 1:
        raise ValueError(f"preference.held_out is {held}; expected at least one pair to measure by")
    recipe, vocab = cell.recipe, Vocab(cell.recipe.system.vocab)
    pairs = load_pairs(cell.folder / "pairs" / PAIRS)[-held:]
    log_probs = reference_log_probs(
        cell.folder / "measure" / "preference",
        cell.folder / cell.stage / DECODER,
        lambda: decoder_of(recipe, cell.folder, cell.stage),
        pairs,
        recipe.system.decoder,
        vocab,
        tokens=recipe.dpo.tokens,
        say=say,
    )
    prefers, margin, audio = [], [], []
    for pair, ours in zip(pairs, log_probs, strict=True):
        both = [(pair.chosen, ours[: len(pair.chosen)]), (pair.rejected, ours[len(pair.chosen) :])]
        chosen, rejected = (float(p[counted(ids, vocab, ("text", "end"))].sum()) for ids, p in both)
        prefers.append((float(chosen > rejected), 1.0))
        margin.append((chosen - rejected, 1.0))
        its = both[0][1][counted(pair.chosen, vocab, ("audio",))]
        audio.append((float(-np.sum(its)), float(len(its))))
    cases = [f"pair-{i:04d}" for i in range(len(pairs))]
    return Table(cases, {"prefers": prefers, "text_margin": margin, "chosen audio_ppl": audio})
