"""A language stage on a packed dataset: wired by the config, and a resumed run is the run."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.config import DecoderConfig, SystemConfig, VocabConfig, WeaveConfig
from aqaa_jax.data.examples import Coder
from aqaa_jax.data.packed import Packed, Stream, build
from aqaa_jax.data.reader import Reader
from aqaa_jax.data.records import Codes, Part, Record, Turn
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.tokens.text import train_pocket
from aqaa_jax.tokens.vocab import Vocab
from aqaa_jax.training.config import LoopConfig, MixConfig, OptimizerConfig, RecipeConfig, StageConfig
from aqaa_jax.training.held_out import held_out_figures
from aqaa_jax.training.language import _batches
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
    for name, tasks in (("sft", ("asr", "aqtaa")), ("dpo", ("preference",))):
        build(root / name, [Stream("talk", Talk(), tasks)], coder, length=128, tokenizer="t")
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
