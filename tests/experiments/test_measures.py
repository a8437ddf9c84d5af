"""Perplexity by stream against the model asked directly, and preference of held-out pairs."""

import jax
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.config import DecoderConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.experiments import perplexity
from aqaa_jax.experiments.measures import Cell, MeasureConfig, measure
from aqaa_jax.losses.cross_entropy import token_log_probs
from aqaa_jax.tokens.prompt import example
from aqaa_jax.training.config import MixConfig, RecipeConfig
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
