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
from aqaa_jax.recipe.side_by_side import side_by_side
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
# What a stage reads of others' results, directly.
NEEDS = {
    "corpus": (),
    "linguistic": ("corpus",),
    "semantic": ("corpus",),
    "tokenize": ("linguistic", "semantic"),
    "flow": ("tokenize",),
    "hift": ("corpus",),
    "pretrain": ("tokenize",),
    "sft1": ("pretrain",),
    "select": ("flow", "hift"),
    "sft2": ("sft1", "select"),
    "pairs": ("sft1", "flow", "hift"),
    "dpo": ("pairs",),
    "merge": ("sft2", "dpo"),
    "package": ("flow", "hift", "sft1", "sft2", "dpo", "merge"),
}
DONE = "done.json"
USED_BY = {"preference": "dpo"}  # values whose stage has another name


def run_recipe(
    recipe: RecipeConfig,
    run_dir: str | Path,
    *,
    only: Sequence[str] | None = None,
    jobs: int = 1,
    command: Sequence[str] = (),
) -> None:
    """Run the stages of ``recipe`` (or ``only`` those named, by default its own ``only``) in ``run_dir``.

    With ``jobs`` above 1, stages that need nothing of one another run side by side, at most so many at once, each as
    ``command --stages=NAME``: the ``aqaa train`` that this is part of. Raises ``ValueError`` for an unknown stage, when
    the folder was begun with another recipe, or for ``jobs`` below 1 or in several joined processes.
    """
    if jobs < 1 or (jobs > 1 and distributed.processes() > 1):
        raise ValueError(f"jobs is {jobs}; expected 1 or more, and 1 for processes that were joined by the launcher")
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
    left = []
    for name in (n for n in STAGES if n in recipe.stages and (only is None or n in only)):
        if (done := run_dir / name / DONE).exists():
            _say(f"[{name}] already done ({done})")
        else:
            left.append(name)
    if jobs > 1 and len(left) > 1:
        needs = {name: _all_needs(name) & frozenset(left) for name in left}
        side_by_side(needs, lambda name: [*command, "--jobs=1", f"--stages={name}"], jobs, _say)
        return
    for name in left:
        _stage(recipe, run_dir, name)


def _all_needs(name: str) -> frozenset[str]:
    return frozenset(NEEDS[name]).union(*(_all_needs(other) for other in NEEDS[name]))


def _stage(recipe: RecipeConfig, run_dir: Path, name: str) -> None:
    """Run one stage in all processes together, or in the first alone; the first writes what it took."""
    first = distributed.first()
    if first:
        (run_dir / name).mkdir(parents=True, exist_ok=True)
        with _timed(run_dir / name / "spent.json") as spent:
            STEPS[name](recipe, run_dir, _say)
        write_json(run_dir / name / DONE, spent)
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
