"""Perplexity by stream against the model asked directly, and preference of held-out pairs."""

import jax
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.config import DecoderConfig, SystemConfig, VocabConfig
from aqaa_jax.data.pairs import Pair, save_pairs
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.evaluation.cases import Case, CaseSet, Turn
from aqaa_jax.evaluation.run import begin
from aqaa_jax.experiments import answers, perplexity, preference
from aqaa_jax.experiments.measures import Cell, MeasureConfig, measure
from aqaa_jax.losses.cross_entropy import token_log_probs
from aqaa_jax.tokens.prompt import example
from aqaa_jax.tokens.vocab import AUDIO_END, AUDIO_START, EOT
from aqaa_jax.training.config import MixConfig, PreferenceConfig, RecipeConfig
from aqaa_jax.training.stages.language import target_scores

DECODER = DecoderConfig(
    vocab=96, embed=16, mlp=24, heads=2, kv_heads=1, head_dim=8, layers=1, dtype="float32", param_dtype="float32"
)


def test_log_probabilities_are_those_of_each_example_alone(monkeypatch):
    monkeypatch.setattr(perplexity, "TOKENS", 128)
    model, rng = Decoder(DECODER, rngs=nnx.Rngs(0)), np.random.default_rng(0)
    examples = [example(rng.integers(1, 96, p), rng.integers(1, 96, a)) for p, a in ((3, 9), (5, 30), (2, 1))]
    run = jax.jit(lambda model, batch: target_scores(model, batch)[0])
    found = dict(perplexity._log_probs(run, model, examples))
    assert sorted(found) == [0, 1, 2]
    alone = jax.jit(lambda model, ids: token_log_probs(model(ids[:, :-1]), ids[:, 1:])[0])
    for i, (ids, mask) in enumerate(examples):
        padded = np.pad(ids, (0, 40 - len(ids)))[None]  # what follows is not seen
        expected = np.asarray(alone(model, padded))[: len(ids) - 1][mask[1:]]
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-5)


def test_the_streams_of_an_arm_are_those_it_was_trained_on():
    recipe = RecipeConfig(pretrain_mix=MixConfig(streams=("semantic",)))
    assert perplexity._streams(recipe, "pretrain") == ("semantic",)
    assert perplexity._streams(recipe, "sft1") == perplexity._streams(recipe, "dpo") == ("linguistic", "semantic")


def test_an_unknown_measure_is_refused(tmp_path):
    cell = Cell(RecipeConfig(), tmp_path, "sft1", tmp_path, MeasureConfig(kinds=("taste",)))
    with pytest.raises(ValueError, match="unknown measure 'taste'; expected some of answers, perplexity"):
        measure(cell, print)
    cell = cell._replace(config=MeasureConfig(kinds=("preference",)))
    with pytest.raises(ValueError, match="held_out is 0; expected at least one pair"):
        measure(cell, print)


def journaled(tmp_path, texts, heard, scores):
    """A run whose steps found these texts, transcripts and judgements of three questions."""
    families = ("addition", "weekdays", "weekdays")
    cases = [Case(f"q{i}", (Turn(text="?"),), tags={"family": f}) for i, f in enumerate(families)]
    run = begin(tmp_path, CaseSet("s", tuple(cases)), {})
    for i, case in enumerate(cases):
        run.answers.add({"id": case.id, "text": texts[i]})
        run.transcripts.add({"id": case.id, "heard": heard[i]} if i < 2 else {"id": case.id, "failure": "no sound"})
        edits = {"alignment_edits": [i, 4]} if i < 2 else {}
        run.measures.add({"id": case.id, "stopped": True, "repaired": i == 0, **edits})
        for kind in ("speech", "text"):
            if kind == "text" or i < 2:
                run.judgements("exact").add({"id": f"{kind}/{case.id}", "case": case.id, "score": scores[i]})
    return run


def test_answers_become_tables_and_what_failed_counts_nothing(tmp_path):
    heard = ["The answer is two exactly.", "The answer is two exactly."]
    run = journaled(tmp_path / "a", ["x", "y", "z"], heard, [1, 0, 0])
    found = answers._metrics(run)
    assert found["factuality"] == [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)]
    assert found["relevance"] == [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)]  # the second was asked for a day
    assert found["written"] == [(1.0, 1.0), (0.0, 1.0), (0.0, 1.0)]
    assert found["alignment_wer"] == [(0, 4), (1, 4), (0.0, 0.0)]
    assert found["whole"][0] == (0.0, 1.0) and found["stopped"] == [(1.0, 1.0)] * 3
    assert "voice_control" not in found and answers._failed(run) == 1
    silent = answers._metrics(journaled(tmp_path / "b", ["", "", ""], heard, [1, 0, 0]))
    assert not {"written", "alignment_wer"} & set(silent) and silent["factuality"] == found["factuality"]


def test_preference_ranks_the_held_out_pairs_by_their_text(tmp_path, monkeypatch):
    vocab = VocabConfig(size=360, audio_start=330, linguistic=8, semantic=12)
    woven = np.array([325, AUDIO_START, 330, 331, 338, 339, 340, AUDIO_END, EOT], np.int32)
    pairs = [Pair(np.arange(100, 103, dtype=np.int32), woven, woven[1:]) for _ in range(3)]
    save_pairs(tmp_path / "pairs" / "pairs.npz", pairs)
    recipe = RecipeConfig(system=SystemConfig(vocab=vocab), preference=PreferenceConfig(held_out=2))
    given = [np.full(17, -1.0, np.float32), np.full(17, -0.5, np.float32)]
    given[1][:9] = -5.0
    monkeypatch.setattr(preference, "reference_log_probs", lambda *a, **k: given)
    table = preference.table(Cell(recipe, tmp_path, "dpo", tmp_path, MeasureConfig()), print)
    assert table.cases == ["pair-0000", "pair-0001"]
    assert table.metrics["text_margin"] == [(-2.0 + 1.0, 1.0), (-10.0 + 0.5, 1.0)]  # text and end, then end alone
    assert table.metrics["prefers"] == [(0.0, 1.0), (0.0, 1.0)]
    assert table.metrics["chosen audio_ppl"] == [(5.0, 5.0), (25.0, 5.0)]
