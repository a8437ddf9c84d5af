"""Which answers sft2 learns from: those whose speech survives its own tokens.

The paper trains its second stage on "selected" spoken answers and does not say how they were chosen. Ours: an answer of
the corpus is kept if its audio ids, turned back into speech, are heard by the judge as the sentence they should say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from aqaa_jax.atomic import write_json
from aqaa_jax.data.corpus import Item
from aqaa_jax.data.questions import answers
from aqaa_jax.data.tasks import load_audio
from aqaa_jax.evaluation.journal import Journal
from aqaa_jax.evaluation.sphinx import normalize_text, transcribe_many
from aqaa_jax.inference.answer import Aqaa
from aqaa_jax.recipe.folders import run_system
from aqaa_jax.training import corpus
from aqaa_jax.training.config import RecipeConfig
from aqaa_jax.training.language import SELECTED

BATCH = 50


def select_answers(recipe: RecipeConfig, run_dir: Path, say: Callable[[str], None]) -> None:
    """``select/answers.json``: the ids of the kept answers; ``select/heard.jsonl``: what was heard of each."""
    items = corpus.items(recipe, "answers")
    kept = _understood(recipe, run_dir, items, say) if recipe.select.listen else [item.answer_id for item in items]
    write_json(run_dir / "select" / SELECTED, {"of": len(items), "kept": kept})
    say(f"[select] {len(kept)} of {len(items)} answers kept")


def _understood(recipe: RecipeConfig, run_dir: Path, items: Sequence[Item], say: Callable[[str], None]) -> list[int]:
    audio = load_audio(run_dir / "tokenize" / "answers.npz")
    model = Aqaa(run_system(recipe, run_dir, "sft1"))
    rate = recipe.system.vocoder.hift.sample_rate
    journal = Journal(run_dir / "select" / "heard.jsonl")

    def hear(keys: list[str]) -> Iterator[dict[str, str]]:
        spoken = model.speak([model.system.vocab.vocoder_codes(audio[int(key)]) for key in keys])
        for key, heard in zip(keys, transcribe_many(answers(), spoken, rate), strict=True):
            yield {"id": key, "heard": heard}
        say(f"[select] {int(keys[-1]) + 1}/{len(items)} answers heard")

    journal.fill([str(i) for i in range(len(items))], hear, BATCH)
    heard = [journal.lines[str(i)]["heard"] for i in range(len(items))]
    right = [normalize_text(h) == normalize_text(item.answer) for h, item in zip(heard, items, strict=True)]
    if not any(right):
        raise ValueError(f"{journal.path}: none of {len(items)} answers was heard right; nothing to select")
    return [item.answer_id for item, keep in zip(items, right, strict=True) if keep]
