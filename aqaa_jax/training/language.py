"""Training the decoder of a recipe: pretrain, then sft on the same tasks in other shares."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from aqaa_jax.checkpoint.files import load_model, read_file, save_model
from aqaa_jax.config import to_dict
from aqaa_jax.data.buckets import BucketPlan
from aqaa_jax.data.tasks import SpokenSet, SpokenTasks, load_audio, shares
from aqaa_jax.parts import abstract
from aqaa_jax.tokens.vocab import Vocab
from aqaa_jax.training import corpus
from aqaa_jax.training.config import MixConfig, RecipeConfig, StageConfig
from aqaa_jax.training.executable import description
from aqaa_jax.training.loop import train
from aqaa_jax.training.stages.language import LanguageStage
from aqaa_jax.training.start import started

Say = Callable[[str], None]


def spoken_tasks(recipe: RecipeConfig, run_dir: Path, mix: MixConfig) -> SpokenTasks:
    """The tokenized corpus of a run as language-model tasks."""

    def spoken(name: str) -> SpokenSet:
        return SpokenSet(corpus.items(recipe, name), load_audio(run_dir / "tokenize" / f"{name}.npz"))

    return SpokenTasks(
        questions=spoken("questions").emphasised(mix.emphasis),
        answers=spoken("answers"),
        voice=spoken("voice"),
        text=corpus.text_tokenizer(recipe, run_dir),
        vocab=Vocab(recipe.system.vocab),
        weave=recipe.system.weave,
        code_noise=mix.code_noise,
    )


def codebook_rows(run_dir: Path, width: int) -> np.ndarray:
    """``[linguistic + semantic, width]`` unit-variance rows: like-sounding codes start as like vectors.

    Linguistic rows are principal components of the phone log-probabilities of the centroids beside those of the
    centroids; semantic rows are principal components of the codebook.
    """
    linguistic = read_file(run_dir / "linguistic" / "linguistic.safetensors")["codebook.table"]
    semantic = read_file(run_dir / "semantic" / "semantic.safetensors")["codebook.table"]
    phones = np.load(run_dir / "linguistic" / "phone_logits.npy")
    parts = [np.concatenate([_standard(np.asarray(linguistic)), _standard(np.maximum(phones, -6.0))], axis=1), semantic]
    rows = []
    for i, part in enumerate(parts):
        components = _principal(_standard(np.asarray(part, np.float64)), width)
        turn = np.linalg.qr(np.random.default_rng(i).normal(size=(width, width)))[0]
        spread = components @ turn[: components.shape[1]]  # every component over all dimensions
        rows.append(spread / spread.std())
    return np.concatenate(rows).astype(np.float32)


def _standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-6)


def _principal(x: np.ndarray, width: int) -> np.ndarray:
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return (u * s)[:, :width]


def _train(recipe: RecipeConfig, run_dir: Path, name: str, stage_config: StageConfig, mix: MixConfig, say: Say) -> None:
    tasks = spoken_tasks(recipe, run_dir, mix)
    wanted = shares(to_dict(mix))
    plan = BucketPlan(
        tasks.lengths(wanted),
        wanted,
        tokens=stage_config.tokens,
        steps=stage_config.loop.steps,
        seed=stage_config.loop.seed,
    )
    start = rows = None
    if name == "sft":
        start = started(recipe, run_dir, name, "decoder")
        if start is None:
            start = load_model(run_dir / "pretrain" / "decoder.safetensors", abstract(recipe.system, "decoder"))
    else:
        rows = codebook_rows(run_dir, recipe.system.decoder.embed)
    stage = LanguageStage(
        name=name,
        decoder=recipe.system.decoder,
        vocab=recipe.system.vocab,
        plan=plan,
        examples=tasks.example,
        seed=stage_config.loop.seed,
        audio_rows=rows,
        head_chunk=stage_config.head_chunk,
    )
    describe = partial(description, name, recipe.system.decoder, recipe.system.vocab, stage_config)
    folder = run_dir / name
    model = train(stage, folder, stage_config.loop, stage_config.optimizer, start=start, log=say, describe=describe)
    save_model(run_dir / name / "decoder.safetensors", model, metadata={"part": "decoder"})


def train_pretrain(recipe: RecipeConfig, run_dir: Path, say: Say) -> None:
    """From random weights, audio embeddings from the codebooks: ``pretrain/decoder.safetensors``."""
    _train(recipe, run_dir, "pretrain", recipe.pretrain, recipe.pretrain_mix, say)


def train_sft(recipe: RecipeConfig, run_dir: Path, say: Say) -> None:
    """From the pre-trained decoder: ``sft/decoder.safetensors``."""
    _train(recipe, run_dir, "sft", recipe.sft, recipe.sft_mix, say)
