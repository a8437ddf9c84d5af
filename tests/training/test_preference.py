"""The preference stage: log 2 at its reference, packed as alone, audio untouched by the text-only sum; its store."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.files import save_model
from aqaa_jax.config import DecoderConfig, VocabConfig
from aqaa_jax.data.buckets import BucketPlan
from aqaa_jax.data.pairs import KINDS, Pair, bucket_pairs, padded_lengths, pair_batch
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.losses.cross_entropy import token_log_probs
from aqaa_jax.tokens.vocab import AUDIO_END, AUDIO_START, EOT, Vocab
from aqaa_jax.training import reference
from aqaa_jax.training.config import LoopConfig, OptimizerConfig, PreferenceConfig
from aqaa_jax.training.loop import train
from aqaa_jax.training.stages.preference import TASK, PreferenceStage

VOCAB = Vocab(VocabConfig(size=360, audio_start=330, linguistic=8, semantic=12))
DECODER = DecoderConfig(
    vocab=360, embed=16, mlp=24, heads=2, kv_heads=1, head_dim=8, layers=2, dtype="float32", param_dtype="float32"
)


def woven(rng, text):
    audio = np.concatenate([np.append(rng.integers(330, 338, 2), rng.integers(338, 350, 3)) for _ in range(2)])
    return np.array([*text, AUDIO_START, *audio, AUDIO_END, EOT], np.int32)


def make_pairs(n):
    """The chosen text has the first id of two, the rejected one the other; the audio says nothing of it."""
    rng = np.random.default_rng(0)
    return [
        Pair(rng.integers(100, 200, 4).astype(np.int32), woven(rng, [325, 327]), woven(rng, [326, 327]))
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def model():
    return Decoder(DECODER, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(5)


@pytest.fixture(scope="module")
def store(tmp_path_factory, model):
    """``store(pairs)`` -> references, from one folder."""
    folder = tmp_path_factory.mktemp("reference")
    save_model(folder / "decoder.safetensors", model)

    def get(pairs, load=lambda: model, at="logs", **changes):
        config = dataclasses.replace(DECODER, **changes)
        weights = folder / "decoder.safetensors"
        return reference.reference_log_probs(folder / at, weights, load, pairs, config, VOCAB, tokens=128)

    get.folder = folder
    return get


def make_stage(pairs, references, **changes):
    plan = BucketPlan({TASK: padded_lengths(pairs)}, {TASK: 1.0}, tokens=128, steps=40, seed=0)
    config = PreferenceConfig(**changes)
    return PreferenceStage("dpo", DECODER, config, bucket_pairs(plan, pairs, references, VOCAB, config.counted))


def alone(model, pair):
    """log p of the ids of both answers, each in a row of its own."""
    run = jax.jit(lambda m, ids: token_log_probs(m(ids[:, :-1]), ids[:, 1:])[0])
    rows = [np.concatenate([pair.prompt, answer])[None] for answer in (pair.chosen, pair.rejected)]
    return np.concatenate([run(model, row)[len(pair.prompt) - 1 :] for row in rows])


def test_the_store_holds_what_the_model_says_of_each_answer_alone(model, pairs, store):
    for ours, pair in list(zip(store(pairs), pairs, strict=True))[:2]:
        np.testing.assert_allclose(ours, alone(model, pair), rtol=1e-4, atol=1e-5)


def test_the_store_is_read_back_completed_and_refused_when_stale(pairs, store, monkeypatch):
    monkeypatch.setattr(reference, "SHARD", 2)
    whole = store(pairs, at="shards")
    assert sorted(p.name for p in (store.folder / "shards").glob("*.npz")) == [f"0000{i}.npz" for i in range(3)]
    store(pairs, at="shards", load=lambda: pytest.fail("loaded though nothing is missing"))
    (store.folder / "shards" / "00001.npz").unlink()
    for a, b in zip(whole, store(pairs, at="shards", remat=True), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=r"about.json: log-probabilities of other pairs than these; remove .*shards"):
        store(pairs[:-1], at="shards")
    with pytest.raises(ValueError, match="of other decoder than"):
        store(pairs, at="shards", norm_eps=1e-6)
    about = store.folder / "shards" / "about.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "weights": "0"}))
    with pytest.raises(ValueError, match="of other weights than"):
        store(pairs, at="shards")


def test_at_the_reference_the_loss_is_log_two_and_packing_changes_nothing(model, pairs, store):
    references = store(pairs)
    stage = make_stage(pairs, references)
    terms = jax.jit(stage.loss)(model, stage.batch(0), jax.random.key(0))
    total, count = terms["preference"]
    assert count == len(stage.batch(0)["tokens"])
    np.testing.assert_allclose(total / count, np.log(2), atol=1e-4)
    away = [r - 0.1 * np.arange(len(r), dtype=np.float32) for r in references]

    run = jax.jit(lambda m, b: stage.loss(m, b, jax.random.key(0))["preference"])

    def loss(rows, length):
        batch = pair_batch([[(pairs[i], away[i]) for i in row] for row in rows], length, VOCAB, ("text", "end"))
        return [float(x) for x in run(model, batch)]

    np.testing.assert_allclose(loss([[0], [1], [2]], 64), loss([[0, 1, 2]], 160), rtol=1e-5)
    assert loss([[0, 1], [2]], 128)[1] == 3


def test_answers_of_audio_only_have_no_gradient_unless_their_ids_count(model, pairs, store):
    silent = [p._replace(chosen=p.chosen[2:-1], rejected=p.rejected[2:-1]) for p in pairs]  # markers and audio only
    references = [np.zeros(2 * len(p.chosen), np.float32) for p in silent]

    def gradient(**changes):
        stage = make_stage(silent, references, **changes)

        def mean_loss(m, batch):
            total, count = stage.loss(m, batch, jax.random.key(0))["preference"]
            return total / count

        return jax.jit(jax.value_and_grad(mean_loss))(model, stage.batch(0))

    value, grad = gradient()
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grad))
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient(counted=tuple(KINDS))[1]))


def test_it_learns_to_prefer_through_the_loop(tmp_path, model, pairs, store):
    stage = make_stage(pairs, store(pairs))
    loop = LoopConfig(steps=40, save_every=40, log_every=20)
    trained = train(
        stage, tmp_path, loop, OptimizerConfig(peak_lr=1e-2, warmup_steps=2), start=model, log=lambda text: None
    )
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["preferred"] == 1.0 and last["preference"] < 0.5 and last["chosen_reward"] > last["rejected_reward"]
    logits = trained(jnp.asarray(pairs[0].prompt)[None])[0, -1]
    assert logits[325] > logits[326]
