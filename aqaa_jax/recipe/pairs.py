"""Preference pairs from the sft1 model's own answers, scored by a stated rule.

For every question one answer per temperature is sampled. An answer is *right* if its text is the corpus's answer,
*whole* if it ended by itself and came apart without a repair, *aligned* if the judge hears in its speech the text it
wrote. A pair is the best right answer (whole, then aligned; in a tie the coolest) before the best wrong one: the
wrong one too should speak well, so that text is what tells them apart. Where no sample is right the corpus's own
answer is chosen; where none is wrong there is no pair. The paper does not say how its pairs were made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aqaa_jax.atomic import read_json, write_json, written
from aqaa_jax.data.pairs import Pair, save_pairs
from aqaa_jax.data.questions import answers
from aqaa_jax.data.tasks import SpokenTasks
from aqaa_jax.evaluation.sphinx import normalize_text, transcribe_many
from aqaa_jax.inference.answer import Aqaa, Response
from aqaa_jax.recipe.folders import run_system
from aqaa_jax.tokens.interleave import unweave_answer
from aqaa_jax.tokens.prompt import task_prompt
from aqaa_jax.tokens.vocab import EOT
from aqaa_jax.training.config import MixConfig, RecipeConfig
from aqaa_jax.training.language import PAIRS, spoken_tasks

Say = Callable[[str], None]


@dataclass(frozen=True)
class Scored:
    """One answer: what it says, and by which rule it is good."""

    temperature: float
    text: str
    heard: str
    right: bool
    whole: bool
    aligned: bool
    ids: list[int]

    @property
    def quality(self) -> tuple[bool, bool, float]:
        return self.whole, self.aligned, -self.temperature


def make_pairs(recipe: RecipeConfig, run_dir: Path, say: Say) -> None:
    """``pairs/pairs.npz`` (ids), ``pairs.jsonl`` (to read), ``about.json`` (counts); samples in ``pairs/samples/``.

    A file of samples is a pure function of the recipe and the sft1 weights, and written whole, so an interrupted run
    goes on with the next one.
    """
    config, folder = recipe.pairs, run_dir / "pairs"
    if len(config.temperatures) < 1 or min(config.temperatures) < 0:
        raise ValueError(f"temperatures {config.temperatures}; expected at least one, none below 0")
    tasks = spoken_tasks(recipe, run_dir, MixConfig())
    questions = range(min(config.questions, len(tasks.questions.items)))
    model = Aqaa(run_system(recipe, run_dir, "sft1"))
    asked: list[dict[str, Any]] = []
    for number, start in enumerate(range(0, len(questions), config.batch)):
        path = folder / "samples" / f"{number:05d}.json"
        if not path.exists():
            chosen = questions[start : start + config.batch]
            write_json(path, {"questions": _sample(recipe, model, tasks, chosen, number)})
            say(f"[pairs] {min(start + config.batch, len(questions))}/{len(questions)} questions answered")
        asked += read_json(path)["questions"]
    _assemble(recipe, folder, model, tasks, asked, say)


def _sample(
    recipe: RecipeConfig, model: Aqaa, tasks: SpokenTasks, questions: Sequence[int], number: int
) -> list[dict[str, Any]]:
    """The scored answers to ``questions``, one per temperature."""
    config = recipe.pairs
    items, audio = [tasks.questions.items[i] for i in questions], [tasks.questions.audio[i] for i in questions]
    out: list[dict[str, Any]] = [
        {"question": i, "asked": item.utterance.text, "expected": item.answer, "answers": []}
        for i, item in zip(questions, items, strict=True)
    ]
    for which, temperature in enumerate(config.temperatures):
        sampling = replace(recipe.system.sampling, temperature=temperature, top_p=config.top_p)
        seed = int(np.random.SeedSequence([config.seed, number, which]).generate_state(1)[0])
        responses = model.respond("aqtaa", audio, seed=seed, sampling=sampling)
        heard = _heard(model, responses) if config.listen else [r.text for r in responses]
        for entry, response, said in zip(out, responses, heard, strict=True):
            entry["answers"].append(asdict(_scored(model, response, said, entry["expected"], temperature)))
    return out


def _heard(model: Aqaa, responses: Sequence[Response]) -> list[str]:
    rate = model.system.config.vocoder.hift.sample_rate
    return transcribe_many(answers(), model.speak([r.audio_tokens for r in responses]), rate)


def _scored(model: Aqaa, response: Response, heard: str, expected: str, temperature: float) -> Scored:
    ids = [*response.tokens.tolist(), *([EOT] if response.stopped else [])]
    text = normalize_text(response.text)
    return Scored(
        temperature=temperature,
        text=response.text,
        heard=heard,
        right=text == normalize_text(expected),
        whole=not any(unweave_answer(ids, model.system.vocab).problems),
        aligned=text == normalize_text(heard) != "",
        ids=ids,
    )


def chosen_and_rejected(answers: Sequence[Scored], *, own_answers: bool) -> tuple[Scored | None, Scored] | None:
    """The pair that the rule makes of the answers to one question, or None; a chosen None is the corpus's answer."""
    right, wrong = [a for a in answers if a.right], [a for a in answers if not a.right]
    if not wrong or (own_answers and not right):
        return None
    best = max(right, key=lambda a: a.quality) if right else None
    return best, max(wrong, key=lambda a: a.quality)


def _assemble(
    recipe: RecipeConfig, folder: Path, model: Aqaa, tasks: SpokenTasks, asked: Sequence[dict[str, Any]], say: Say
) -> None:
    pairs, lines = [], []
    for entry in asked:
        scored = [Scored(**answer) for answer in entry["answers"]]
        found = chosen_and_rejected(scored, own_answers=recipe.pairs.own_answers)
        if found is None:
            continue
        chosen, rejected = found
        heard = tasks.questions.audio[entry["question"]]
        prompt = task_prompt("aqtaa", heard, model.system.text, system=recipe.system.system_prompt)
        corpus_ids = _corpus_answer(tasks, entry["question"]) if chosen is None else chosen.ids
        pairs.append(Pair(*(np.asarray(ids, np.int32) for ids in (prompt, corpus_ids, rejected.ids))))
        source = "corpus" if chosen is None else {k: v for k, v in asdict(chosen).items() if k != "ids"}
        said = {k: v for k, v in asdict(rejected).items() if k != "ids"}
        lines.append({"asked": entry["asked"], "expected": entry["expected"], "chosen": source, "rejected": said})
    if not pairs:
        raise ValueError(f"{folder}: none of {len(asked)} questions gave a pair; sample at higher temperatures")
    save_pairs(folder / PAIRS, pairs)
    with written(folder / "pairs.jsonl") as part:
        part.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    answered = [answer for entry in asked for answer in entry["answers"]]
    about = {
        "questions": len(asked),
        "answers": len(answered),
        **{name: sum(a[name] for a in answered) for name in ("right", "whole", "aligned")},
        "pairs": len(pairs),
        "chosen_from_corpus": sum(line["chosen"] == "corpus" for line in lines),
    }
    write_json(folder / "about.json", about)
    say("[pairs] " + "  ".join(f"{name} {count}" for name, count in about.items()))


def _corpus_answer(tasks: SpokenTasks, question: int) -> np.ndarray:
    ids, mask = tasks.example("aqtaa", question, np.random.default_rng(0))
    return ids[mask]
