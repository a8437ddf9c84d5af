"""A language stage on a packed dataset: wired by the config, and a resumed run is the run."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.files import save_model
from aqaa_jax.config import DecoderConfig, SystemConfig, VocabConfig, WeaveConfig
from aqaa_jax.data.examples import Coder, units
from aqaa_jax.data.packed import Packed, Stream, build
from aqaa_jax.data.packed_pairs import PackedPairs
from aqaa_jax.data.pairs import pair_batch, pair_of
from aqaa_jax.data.reader import Reader
from aqaa_jax.data.records import Codes, Part, Record, Turn
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.tokens.text import TextTokenizer, train_pocket
from aqaa_jax.tokens.vocab import Vocab
from aqaa_jax.training.config import LoopConfig, MixConfig, OptimizerConfig, PreferenceConfig, RecipeConfig, StageConfig
from aqaa_jax.training.held_out import held_out_figures
from aqaa_jax.training.language import _batches, train_dpo
from aqaa_jax.training.loop import train
from aqaa_jax.training.stages.language import LanguageStage

VOCAB = VocabConfig(size=400 + 48, audio_start=400, linguistic=16, semantic=32)


class Talk:
    """Questions and answers with codes, some with a worse answer."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        rng = np.random.default_rng(index)

        def part(text):
            return Part(text, codes=Codes(rng.integers(0, 16, 4), rng.integers(0, 32, 6)))

        turns = (Turn("human", (part("How many?"),)), Turn("assistant", (part("A few."),)))
        return Record(str(index), turns, (part("None."),))

    def fingerprint(self):
        return "talk"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("packed")
    text = train_pocket(["How many? A few. None. human assistant"] * 30, root / "t.model", Vocab(VOCAB), size=380)
    coder = Coder(text, Vocab(VOCAB), WeaveConfig())
    for name, tasks, length in (("sft", ("asr", "aqtaa"), 128), ("dpo", ("preference",), 256)):
        build(root / name, [Stream("talk", Talk(), tasks)], coder, length=length, tokenizer="t")
    return root


def stage_config(folder, **changes):
    return StageConfig(**{"loop": LoopConfig(steps=6, seed=5), "batch": 2, "dataset": str(folder), **changes})


def test_a_stage_reads_the_dataset_its_config_names(folders, tmp_path):
    recipe = RecipeConfig(system=SystemConfig(vocab=VOCAB))
    batches = _batches(recipe, tmp_path, stage_config(folders / "sft"), MixConfig(code_noise=0.1), None)
    expected = Reader(Packed(folders / "sft"), batch=2, seed=5, code_noise=0.1)
    for step in (0, 3):
        for key, value in expected(step).items():
            np.testing.assert_array_equal(batches(step)[key], value)
    other = dataclasses.replace(recipe, system=SystemConfig(vocab=dataclasses.replace(VOCAB, size=500)))
    with pytest.raises(ValueError, match="packed for VocabConfig"):
        _batches(other, tmp_path, stage_config(folders / "sft"), MixConfig(), None)
    with pytest.raises(ValueError, match="holds preference pairs"):
        _batches(recipe, tmp_path, stage_config(folders / "dpo"), MixConfig(), None)
    with pytest.raises(FileNotFoundError, match=r"packed.json: missing"):
        _batches(recipe, tmp_path, stage_config(tmp_path), MixConfig(), None)


@pytest.mark.long
def test_a_resumed_run_on_packed_rows_is_the_run(folders, tmp_path):
    decoder = DecoderConfig(
        vocab=VOCAB.size,
        embed=16,
        mlp=32,
        heads=2,
        kv_heads=1,
        head_dim=8,
        layers=1,
        max_length=128,
        scan=False,
        dtype="float32",
        param_dtype="float32",
    )

    def trained(run_dir, steps):
        stage = LanguageStage(
            name="sft", decoder=decoder, vocab=VOCAB, batches=Reader(folders / "sft", batch=2, seed=5)
        )
        loop = LoopConfig(steps=steps, seed=5, save_every=3, log_every=3)
        return train(stage, run_dir, loop, OptimizerConfig(warmup_steps=1), log=lambda text: None)

    whole = trained(tmp_path / "whole", 6)
    original = Reader.__call__

    def stopped(self, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "__call__", stopped)
        with pytest.raises(SystemExit):
            trained(tmp_path / "cut", 6)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(trained(tmp_path / "cut", 6)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.long
def test_held_out_figures_are_means_over_all_targets(folders):
    decoder = DecoderConfig(
        vocab=VOCAB.size, embed=8, mlp=8, heads=2, kv_heads=1, head_dim=4, layers=1, max_length=128, scan=False
    )
    config = stage_config(folders / "sft", held_out=str(folders / "sft"), held_out_steps=3)
    reader = Reader(folders / "sft", batch=2, seed=5)
    model = Decoder(decoder, rngs=nnx.Rngs(0))
    figures = held_out_figures(config, VOCAB, reader)(model)
    stage = LanguageStage("sft", decoder, VOCAB, reader)
    loss = jax.jit(stage.loss)
    terms = [jax.device_get(loss(model, reader(step), jax.random.key(0))) for step in range(3)]
    for name in ("answer", "text_loss", "semantic_accuracy"):
        value, count = (sum(float(t[name][i]) for t in terms) for i in (0, 1))
        np.testing.assert_allclose(figures[f"held_out_{name}"], value / count, rtol=2e-3)  # bfloat16


def test_packed_pairs_are_those_of_the_records_in_rows_of_one_shape(folders):
    pairs, vocab = PackedPairs(folders / "dpo"), Vocab(VOCAB)
    assert len(pairs) == 24 and len(pairs[2:5]) == 3 and pairs.sha256 == PackedPairs(folders / "dpo").sha256
    expected = [preference_pair(folders, i) for i in range(24)]
    assert sorted(str(p) for p in pairs) == sorted(str(p) for p in expected)
    with pytest.raises(ValueError, match="holds no pairs; expected the task preference"):
        PackedPairs(folders / "sft")
    references = [np.full(len(p.chosen) + len(p.rejected), -k, np.float32) for k, p in enumerate(pairs)]
    batches = pairs.batches(references, vocab, ("text", "end"), batch=2, seed=5)
    seen, drawn, shapes = set(), pairs.packed.mixture(5), set()
    for step in range(len(pairs.packed.streams["talk"][1]) // 2):
        batch = batches(step)
        shapes.add(tuple(value.shape for value in batch.values()))
        for i in range(2):
            row = pairs.row(*drawn[2 * step + i][:2])
            alone = pair_batch([[(pairs[k], references[k]) for k in row]], 256, vocab, ("text", "end"))
            for key in ("tokens", "segment_ids"):
                np.testing.assert_array_equal(batch[key][i], alone[key][0])
            assert batch["pairs"][i].sum() == len(row)
            there = batch["loss_mask"][i] > 0
            assert set(-batch["reference"][i][there].astype(int)) == set(row)
            seen |= set(row)
    assert (
        len(shapes) == 1 and batch["pairs"].shape[1] > 1 and len(seen) >= 20
    )  # an odd row may be left to the next epoch


def coder_of(folders):
    return Coder(TextTokenizer.load(folders / "t.model", Vocab(VOCAB)), Vocab(VOCAB), WeaveConfig())


def preference_pair(folders, index):
    return pair_of(*units("preference", Talk()[index], coder_of(folders))[0])


@pytest.mark.long
def test_the_dpo_stage_reads_packed_pairs_and_keeps_their_references(folders, tmp_path, monkeypatch):
    decoder = DecoderConfig(
        vocab=VOCAB.size, embed=16, mlp=32, heads=2, kv_heads=1, head_dim=8, layers=1, max_length=256, scan=False,
        dtype="float32", param_dtype="float32",
    )  # fmt: skip
    loop = LoopConfig(steps=6, seed=5, log_every=1)
    config = stage_config(folders / "dpo", loop=loop, optimizer=OptimizerConfig(peak_lr=1e-2, warmup_steps=1))
    recipe = RecipeConfig(system=SystemConfig(vocab=VOCAB, decoder=decoder), dpo=config)
    model = Decoder(decoder, rngs=nnx.Rngs(0))
    save_model(tmp_path / "sft1" / "decoder.safetensors", model, metadata={"part": "decoder"})
    train_dpo(recipe, tmp_path, print)
    lines = (tmp_path / "dpo" / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert abs(first["preference"] - np.log(2)) < 1e-3
    pairs = PackedPairs(folders / "dpo")
    assert json.loads((tmp_path / "dpo" / "reference" / "about.json").read_text())["pairs"] == pairs.sha256
    with pytest.raises(ValueError, match=r"all its pairs are learnt; expected preference.held_out to be 0"):
        train_dpo(dataclasses.replace(recipe, preference=PreferenceConfig(held_out=2)), tmp_path, print)
    build(
        tmp_path / "other",
        [Stream("talk", Talk(), ("preference",))],
        coder_of(folders),
        length=128,
        seed=3,
        tokenizer="t",
    )
    other = dataclasses.replace(recipe, dpo=dataclasses.replace(config, dataset=str(tmp_path / "other")))
    with pytest.raises(ValueError, match="log-probabilities of other pairs than these"):
        train_dpo(other, tmp_path, print)
