"""Training the decoder of a recipe: pretrain, sft1 and sft2 are the same tasks in other shares; dpo is its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from aqaa_jax.atomic import read_json
from aqaa_jax.checkpoint.files import load_model, read_file, save_model
from aqaa_jax.config import ShardingConfig, to_dict
from aqaa_jax.data.buckets import BucketPlan
from aqaa_jax.data.language import LanguageBatch, bucket_batches
from aqaa_jax.data.packed import Packed
from aqaa_jax.data.packed_pairs import PackedPairs
from aqaa_jax.data.pairs import Pair, PairBatch, bucket_pairs, load_pairs, padded_lengths
from aqaa_jax.data.reader import Reader
from aqaa_jax.data.tasks import STREAMS, SpokenSet, SpokenTasks, load_audio, shares
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.parts import abstract
from aqaa_jax.sharding.axes import BATCH
from aqaa_jax.sharding.mesh import make_mesh
from aqaa_jax.sharding.partition import partitioning, split_of
from aqaa_jax.sharding.rows import share_of_rows
from aqaa_jax.sharding.rules import rules_of
from aqaa_jax.tokens.vocab import Vocab
from aqaa_jax.training import corpus
from aqaa_jax.training.config import MixConfig, RecipeConfig, StageConfig
from aqaa_jax.training.distributed import first, whole
from aqaa_jax.training.executable import description
from aqaa_jax.training.held_out import held_out_figures
from aqaa_jax.training.loop import Stage, train
from aqaa_jax.training.reference import reference_log_probs
from aqaa_jax.training.stages.language import LanguageStage
from aqaa_jax.training.stages.preference import TASK, PreferenceStage
from aqaa_jax.training.start import started

Say = Callable[[str], None]
DECODER = "decoder.safetensors"
SELECTED = "answers.json"  # of select: which answers sft2 learns
PAIRS = "pairs.npz"  # of pairs


def spoken_tasks(recipe: RecipeConfig, run_dir: Path, mix: MixConfig, kept: Path | None = None) -> SpokenTasks:
    """The tokenized corpus of a run as language-model tasks; of the questions, those whose answers ``kept`` names."""

    def spoken(name: str) -> SpokenSet:
        return SpokenSet(corpus.items(recipe, name), load_audio(run_dir / "tokenize" / f"{name}.npz"))

    questions = spoken("questions")
    if kept is not None:
        answers = frozenset(read_json(kept)["kept"])
        at = [i for i, item in enumerate(questions.items) if item.answer_id in answers]
        questions = SpokenSet([questions.items[i] for i in at], [questions.audio[i] for i in at])
    return SpokenTasks(
        questions=questions.emphasised(mix.emphasis),
        answers=spoken("answers"),
        voice=spoken("voice"),
        text=corpus.text_tokenizer(recipe, run_dir),
        vocab=Vocab(recipe.system.vocab),
        weave=recipe.system.weave,
        code_noise=mix.code_noise,
        streams=mix.streams,
    )


def codebook_rows(run_dir: Path, width: int) -> np.ndarray:
    """``[linguistic + semantic, width]`` unit-variance rows: like-sounding codes start as like vectors.

    Linguistic rows are principal components of the phone log-probabilities of the centroids beside those of the
    centroids, or of the centroids alone where the run began from a model folder, which has no phones; semantic rows
    are principal components of the codebook.
    """
    linguistic = read_file(run_dir / "linguistic" / "linguistic.safetensors")["codebook.table"]
    semantic = read_file(run_dir / "semantic" / "semantic.safetensors")["codebook.table"]
    known, phones = [_standard(np.asarray(linguistic))], run_dir / "linguistic" / "phone_logits.npy"
    if phones.exists():
        known.append(_standard(np.maximum(np.load(phones), -6.0)))
    parts = [np.concatenate(known, axis=1), semantic]
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


def decoder_of(recipe: RecipeConfig, run_dir: Path, stage: str) -> Decoder:
    """The decoder that ``stage`` left. Raises ``FileNotFoundError`` when it has not run."""
    path = run_dir / stage / DECODER
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; stage {stage!r} has to run first")
    return load_model(path, abstract(recipe.system, "decoder"))


def _batches(
    recipe: RecipeConfig, run_dir: Path, stage_config: StageConfig, mix: MixConfig, kept: Path | None = None
) -> Callable[[int], LanguageBatch]:
    """Of the packed dataset that the stage names, else of the recipe's own corpus."""
    seed = stage_config.loop.seed
    if stage_config.dataset:
        if mix.streams != STREAMS:
            raise ValueError(f"{stage_config.dataset}: a packed dataset holds both codebooks, not only {mix.streams}")
        sharding = stage_config.loop.sharding
        host, hosts = share_of_rows(stage_config.batch, make_mesh(sharding.mesh), rules_of(sharding))
        return _reader(
            recipe, stage_config, stage_config.dataset, mix.code_noise, stage_config.workers, host=host, hosts=hosts
        )
    tasks = spoken_tasks(recipe, run_dir, mix, kept)
    wanted = shares(to_dict(mix))
    plan = BucketPlan(
        tasks.lengths(wanted),
        wanted,
        tokens=stage_config.tokens,
        steps=stage_config.loop.steps,
        seed=seed,
        shards=batch_shards(stage_config.loop.sharding),
    )
    return bucket_batches(plan, tasks.example, seed)


def _reader(
    recipe: RecipeConfig, stage: StageConfig, folder: str, noise: float = 0.0, workers: int = 0, **host: int
) -> Reader:
    """The batches of a packed dataset. Raises ``ValueError`` unless it was packed for this vocabulary and loss."""
    reader = Reader(folder, batch=stage.batch, seed=stage.loop.seed, code_noise=noise, workers=workers, **host)
    _check_vocab(reader.packed, recipe, folder)
    if reader.packed.pairs:
        raise ValueError(f"{folder}: holds preference pairs; this stage takes examples of one answer")
    return reader


def _check_vocab(packed: Packed, recipe: RecipeConfig, dataset: str) -> None:
    if packed.vocab != recipe.system.vocab:
        raise ValueError(f"{dataset}: packed for {packed.vocab}, not for {recipe.system.vocab}")


def _train(recipe: RecipeConfig, run_dir: Path, name: str, say: Say, start: Decoder | None, kept: Path | None) -> None:
    stage_config: StageConfig = getattr(recipe, name)
    watched = {}
    if stage_config.held_out:
        rows = _reader(recipe, stage_config, stage_config.held_out)
        watched["figures"] = held_out_figures(stage_config, recipe.system.vocab, rows)
    stage = LanguageStage(
        name=name,
        decoder=recipe.system.decoder,
        vocab=recipe.system.vocab,
        batches=_batches(recipe, run_dir, stage_config, getattr(recipe, f"{name}_mix"), kept),
        audio_rows=codebook_rows(run_dir, recipe.system.decoder.embed) if start is None else None,
        head_chunk=stage_config.head_chunk,
        **watched,
    )
    _train_decoder(recipe, run_dir, stage, stage_config, start, say)


def _train_decoder(
    recipe: RecipeConfig, run_dir: Path, stage: Stage, config: StageConfig, start: Decoder | None, say: Say
) -> None:
    describe = partial(description, stage.name, recipe.system.decoder, recipe.system.vocab, config)
    folder = run_dir / stage.name
    model = whole(train(stage, folder, config.loop, config.optimizer, start=start, log=say, describe=describe))
    if first():
        save_model(folder / DECODER, model, metadata={"part": "decoder"})


def batch_shards(config: ShardingConfig) -> int:
    """How many devices the rows of a batch are split over."""
    with partitioning(make_mesh(config.mesh), rules_of(config)):
        return split_of(BATCH)


def train_pretrain(recipe: RecipeConfig, run_dir: Path, say: Say) -> None:
    """From random weights, audio embeddings from the codebooks: ``pretrain/decoder.safetensors``."""
    _train(recipe, run_dir, "pretrain", say, None, None)


def train_sft1(recipe: RecipeConfig, run_dir: Path, say: Say) -> None:
    """From the pre-trained decoder, or from the one the run began with: ``sft1/decoder.safetensors``."""
    start = started(recipe, run_dir, "sft1", "decoder")
    _train(recipe, run_dir, "sft1", say, decoder_of(recipe, run_dir, "pretrain") if start is None else start, None)


def train_sft2(recipe: RecipeConfig, run_dir: Path, say: Say) -> None:
    """From sft1, on questions whose answers were selected: ``sft2/decoder.safetensors``."""
    start = decoder_of(recipe, run_dir, "sft1")
    _train(recipe, run_dir, "sft2", say, start, run_dir / "select" / SELECTED)


def train_dpo(recipe: RecipeConfig, run_dir: Path, say: Say) -> None:
    """From sft1, which is the reference too, on the run's pairs or on a packed set: ``dpo/decoder.safetensors``."""
    config = recipe.dpo
    stage = PreferenceStage(
        name="dpo",
        decoder=recipe.system.decoder,
        config=recipe.preference,
        batches=(_packed_pairs if config.dataset else _made_pairs)(recipe, run_dir, say),
        head_chunk=config.head_chunk,
    )
    _train_decoder(recipe, run_dir, stage, config, decoder_of(recipe, run_dir, "sft1"), say)


def _references(
    recipe: RecipeConfig, run_dir: Path, folder: Path, pairs: Sequence[Pair], tokens: int, say: Say, data: str = ""
) -> list[np.ndarray]:
    """What sft1 gives the ids of every pair's answers, kept in ``folder``."""
    return reference_log_probs(
        folder,
        run_dir / "sft1" / DECODER,
        lambda: decoder_of(recipe, run_dir, "sft1"),
        pairs,
        recipe.system.decoder,
        Vocab(recipe.system.vocab),
        tokens=tokens,
        data=data,
        say=say,
    )


def _made_pairs(recipe: RecipeConfig, run_dir: Path, say: Say) -> Callable[[int], PairBatch]:
    """Of the run's own pairs, without those that are held out."""
    config, held = recipe.dpo, recipe.preference.held_out
    pairs = load_pairs(run_dir / "pairs" / PAIRS)
    if not 0 <= held < len(pairs):
        raise ValueError(f"preference.held_out is {held}; expected at least 0 and fewer than the {len(pairs)} pairs")
    references = _references(recipe, run_dir, run_dir / "pairs" / "reference", pairs, config.tokens, say)
    plan = BucketPlan(
        {TASK: padded_lengths(pairs[: len(pairs) - held])},
        {TASK: 1.0},
        tokens=config.tokens,
        steps=config.loop.steps,
        seed=config.loop.seed,
        shards=batch_shards(config.loop.sharding),
    )
    return bucket_pairs(plan, pairs, references, Vocab(recipe.system.vocab), recipe.preference.counted)


def _packed_pairs(recipe: RecipeConfig, run_dir: Path, say: Say) -> Callable[[int], PairBatch]:
    """Of the packed dataset that the stage names: several pairs to a row."""
    config, vocab = recipe.dpo, Vocab(recipe.system.vocab)
    if recipe.preference.held_out:
        raise ValueError(f"{config.dataset}: all its pairs are learnt; expected preference.held_out to be 0")
    pairs = PackedPairs(config.dataset)
    _check_vocab(pairs.packed, recipe, config.dataset)
    tokens = config.batch * pairs.packed.length
    folder = run_dir / "dpo" / "reference"
    references = _references(recipe, run_dir, folder, pairs, tokens, say, data=pairs.sha256)
    return pairs.batches(references, vocab, recipe.preference.counted, batch=config.batch, seed=config.loop.seed)
