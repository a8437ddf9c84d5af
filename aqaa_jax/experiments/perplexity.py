"""Next-token loss on answers that no arm was trained on, by stream.

Held-out: for ``tts`` and ``interleaved`` answers, sentences of the answer voice from another seed; for tasks that
are asked, held-out questions in training voices; for ``continuation``, those questions themselves. Their codes are made
once and kept beside the common stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from aqaa_jax.data import corpus as sets
from aqaa_jax.data.language import language_batch
from aqaa_jax.data.rendering import render
from aqaa_jax.data.tasks import SpokenSet, SpokenTasks, load_audio, save_audio
from aqaa_jax.experiments.measures import Cell, Say, Table
from aqaa_jax.tokens.prompt import Example
from aqaa_jax.tokens.vocab import TokenClass, Vocab
from aqaa_jax.training import corpus
from aqaa_jax.training.config import MixConfig, RecipeConfig
from aqaa_jax.training.language import decoder_of, spoken_tasks
from aqaa_jax.training.stages.language import target_scores

TOKENS, GRID = 4096, 64  # of a batch; lengths are padded to a multiple, so that a few shapes are compiled
STREAMS = {
    "text": (TokenClass.TEXT,),
    "linguistic": (TokenClass.LINGUISTIC,),
    "semantic": (TokenClass.SEMANTIC,),
    "audio": (TokenClass.LINGUISTIC, TokenClass.SEMANTIC),
}


def table(cell: Cell, say: Say) -> Table:
    """(loss in nats, tokens) of every held-out example, by task and stream."""
    tasks, first = _held_out(cell, say)
    model, vocab = decoder_of(cell.recipe, cell.folder, cell.stage), tasks.vocab
    run = jax.jit(lambda model, batch: target_scores(model, batch)[0])
    cases: list[str] = []
    columns: dict[str, dict[int, tuple[float, float]]] = {}
    for task in cell.config.tasks:
        numbers = [first[task] + i for i in range(cell.config.questions)]
        found = [tasks.example(task, number, np.random.default_rng(0)) for number in numbers]
        examples = [Example(*example) for example in found]
        for i, log_probs in _log_probs(run, model, examples):
            targets = examples[i].ids[1:][examples[i].loss_mask[1:]]
            kinds = vocab.classify(targets)
            for stream, members in STREAMS.items():
                mine = np.isin(kinds, [int(m) for m in members])
                if mine.any():
                    pair = (float(-log_probs[mine].sum()), float(mine.sum()))
                    columns.setdefault(f"{task} {stream}_ppl", {})[len(cases) + i] = pair
        cases += [f"{task}-{i:04d}" for i in range(len(examples))]
        say(f"[perplexity] {task}: {len(examples)} held-out examples")
    metrics = {name: [found.get(i, (0.0, 0.0)) for i in range(len(cases))] for name, found in columns.items()}
    return Table(cases, metrics)


def _log_probs(run: Any, model: Any, examples: Sequence[Example]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, log-probabilities of the targets) of every example, those of like length together."""
    lengths = np.array([-(-len(example.ids) // GRID) * GRID for example in examples])
    for length in np.unique(lengths).tolist():
        members, rows = np.flatnonzero(lengths == length).tolist(), max(1, TOKENS // length)
        for start in range(0, len(members), rows):
            chosen = members[start : start + rows]
            filled = chosen + chosen[-1:] * (rows - len(chosen))  # a batch of one shape
            batch = language_batch([examples[i] for i in filled], length, grid=length)
            scores_BK = np.asarray(run(model, batch), np.float64)
            for row, i in enumerate(chosen):
                yield i, scores_BK[row, batch["loss_mask"][row] > 0]


def _held_out(cell: Cell, say: Say) -> tuple[SpokenTasks, dict[str, int]]:
    """The tasks over held-out speech, and the number of the first held-out example of each."""
    c, recipe = cell.config, cell.recipe
    known = spoken_tasks(recipe, cell.folder, MixConfig(streams=_streams(recipe, cell.stage)))
    asked = sets.question_utterances(c.questions, c.seed, "new_questions")
    said = sets.voice_utterances(c.questions, c.seed)
    questions = SpokenSet(asked, _codes(cell, "questions", asked, 0.0, say))
    voice = SpokenSet(said, _codes(cell, "voice", said, sets.TAIL_SECONDS, say))
    first = {task: 0 for task in cell.config.tasks} | {"tts": len(known.answers.items)}
    return replace(known, questions=questions, voice=voice), first


def _streams(recipe: RecipeConfig, stage: str) -> tuple[str, ...]:
    """The codebooks that the examples of the measured stage held."""
    mix = getattr(recipe, f"{stage}_mix", None)
    return mix.streams if isinstance(mix, MixConfig) else MixConfig().streams


def _codes(cell: Cell, name: str, items: Sequence[sets.Item], tail: float, say: Say) -> list[np.ndarray]:
    path = cell.common / "held_out" / f"{name}-{cell.config.seed}-{len(items)}.npz"
    if not path.exists():
        clips = render(
            [item.utterance for item in items],
            cell.common / "speech",
            corpus.BOTH_RATES[:1],
            cell.recipe.corpus.workers,
        )
        wavs = [clips[i].wavs[corpus.BOTH_RATES[0]] for i in range(len(items))]
        tokenizer, vocab = corpus.dual_tokenizer(cell.recipe, cell.folder), Vocab(cell.recipe.system.vocab)
        save_audio(path, corpus.tokenize(tokenizer, wavs, vocab, tail=tail))
        say(f"[perplexity] codes of {len(items)} held-out utterances in {path}")
    return load_audio(path)
