"""The recipe: stages in order, each reading what the ones before it left in the run folder.

A stage that has left its result is skipped, one that was interrupted goes on from where it was. Nothing here computes;
it connects ``training``, ``inference`` and ``evaluation``.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from aqaa_jax.atomic import read_json, write_json
from aqaa_jax.config import from_dict, to_dict
from aqaa_jax.recipe import folders, pairs, select
from aqaa_jax.training import corpus, distributed, language, start, tokenizers, vocoders
from aqaa_jax.training.config import STAGES, RecipeConfig

Say = Callable[[str], None]
STEPS: dict[str, Callable[[RecipeConfig, Path, Say], None]] = {
    "corpus": corpus.render_corpus,
    "linguistic": tokenizers.train_linguistic,
    "semantic": tokenizers.train_semantic,
    "tokenize": corpus.tokenize_corpus,
    "flow": vocoders.train_flow,
    "hift": vocoders.train_hift,
    "pretrain": language.train_pretrain,
    "sft1": language.train_sft1,
    "select": select.select_answers,
    "sft2": language.train_sft2,
    "pairs": pairs.make_pairs,
    "dpo": language.train_dpo,
    "merge": folders.merge_decoders,
    "package": folders.package,
}
# Work of the host: with several processes the first does it, the others wait.
ALONE = ("corpus", "tokenize", "select", "pairs", "merge", "package")
USED_BY = {"preference": "dpo"}  # values whose stage has another name


def run_recipe(recipe: RecipeConfig, run_dir: str | Path, *, only: Sequence[str] | None = None) -> None:
    """Run the stages of ``recipe`` (or ``only`` those named, by default its own ``only``) in ``run_dir``.

    Raises ``ValueError`` for an unknown stage, or when the folder was begun with another recipe.
    """
    run_dir = Path(run_dir)
    only = (recipe.only or None) if only is None else only
    for name in [*(only or ()), *recipe.stages]:
        if name not in STAGES:
            raise ValueError(f"unknown stage {name!r}; expected some of {', '.join(STAGES)}")
        if name not in recipe.stages:
            raise ValueError(f"stage {name!r} is not one of this recipe, which has {', '.join(recipe.stages)}")
    if distributed.first():
        run_dir.mkdir(parents=True, exist_ok=True)
        _same_recipe(recipe, run_dir)
        if recipe.start:
            start.begin(recipe, run_dir)
    distributed.barrier("recipe")
    for name in STAGES:
        if name not in recipe.stages or (only is not None and name not in only):
            continue
        if (done := run_dir / name / "done.json").exists():
            _say(f"[{name}] already done ({done})")
        else:
            _stage(recipe, run_dir, name, done)


def _stage(recipe: RecipeConfig, run_dir: Path, name: str, done: Path) -> None:
    """Run one stage in all processes together, or in the first alone; the first writes what it took."""
    first = distributed.first()
    if first:
        (run_dir / name).mkdir(parents=True, exist_ok=True)
        with _timed(run_dir / name / "spent.json") as spent:
            STEPS[name](recipe, run_dir, _say)
        write_json(done, spent)
        _say(f"[{name}] done in {spent['seconds'] / 60:.1f} min")
    elif name not in ALONE:
        STEPS[name](recipe, run_dir, _say)
    distributed.barrier(f"stage {name}")


@contextlib.contextmanager
def _timed(path: Path) -> Iterator[dict[str, float]]:
    """Seconds and CPU seconds inside, added to those of interrupted sittings, which ``path`` remembers."""
    spent = read_json(path) if path.exists() else {"seconds": 0.0, "cpu_seconds": 0.0}
    clock, cpu = time.monotonic(), time.process_time()
    try:
        yield spent
    finally:
        spent["seconds"] = round(spent["seconds"] + time.monotonic() - clock, 1)
        spent["cpu_seconds"] = round(spent["cpu_seconds"] + time.process_time() - cpu, 1)
        write_json(path, spent)


def _same_recipe(recipe: RecipeConfig, run_dir: Path) -> None:
    """Write ``recipe.json``, or compare with the one there; which stages run may differ, and what none has used."""
    values = {k: v for k, v in to_dict(recipe).items() if k not in ("config", "stages", "only")}
    path = run_dir / "recipe.json"
    if not path.exists():
        write_json(path, values)
        return
    before = to_dict(from_dict(RecipeConfig, read_json(path)))  # what an earlier version did not know has its default

    def used(name: str) -> bool:
        return (run_dir / USED_BY.get(name, name.removesuffix("_mix"))).exists()

    changed = sorted(name for name in values if values[name] != before.get(name) and used(name))
    if changed:
        raise ValueError(f"{path}: begun with other values of {', '.join(changed)}; choose another --run_dir")
    write_json(path, values)


def _say(text: str) -> None:
    if distributed.first():
        print(text, file=sys.stderr, flush=True)
