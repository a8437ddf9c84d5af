"""Arms times seeds, each an ordinary recipe run in a folder of its own that links what it shares.

A sweep's folder::

    common/            a recipe run: the stages that all share
    seed-S/            where stages are shared by the arms of a seed: the common ones linked, and those
    ARM/seed-S/        a cell: the shared stages linked, its own trained, and ``measure/`` with its figures
    results.json       everything measured so far, with intervals and verdicts; written after every cell

A finished stage or measure is skipped, an interrupted one goes on: the same command again resumes everything.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

from aqaa_jax.atomic import write_json
from aqaa_jax.experiments.config import SweepConfig
from aqaa_jax.experiments.measures import Cell, measure
from aqaa_jax.experiments.results import gather
from aqaa_jax.recipe.folders import DECODER_STAGES
from aqaa_jax.recipe.run import run_recipe
from aqaa_jax.training.config import STAGES, RecipeConfig

COMMON, RESULTS, CHECKPOINTS = "common", "results.json", "checkpoints"
LINKED = ("speech",)  # beside the folders of finished stages
Say = Callable[[str], None]


class Place(NamedTuple):
    """A cell by name."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


def run_sweep(
    sweep: SweepConfig,
    run_dir: str | Path,
    *,
    arms: Collection[str] = (),
    seeds: Collection[int] = (),
    say: Say = lambda text: print(text, file=sys.stderr, flush=True),
) -> dict[str, Any]:
    """Train and measure every cell, or those of ``arms`` and ``seeds``, in ``run_dir``; return ``results.json``.

    Raises ``ValueError`` for an unknown arm or seed, or when the folder was begun with other values.
    """
    run_dir = Path(run_dir).absolute()
    cells = _cells(sweep, arms, seeds)
    jax.config.update("jax_compilation_cache_dir", str(run_dir / "compiled"))  # cells are alike: programs come again
    _run(sweep.base(0), run_dir / COMMON, sweep.common)
    began, results = time.monotonic(), gather(sweep, run_dir)
    for number, place in enumerate(cells, 1):
        say(f"[sweep {sweep.name}] cell {number}/{len(cells)}: {place}")
        _cell(sweep, run_dir, place, say)
        results = gather(sweep, run_dir)
        write_json(run_dir / RESULTS, results)
        left = (time.monotonic() - began) / number * (len(cells) - number)
        say(f"[sweep {sweep.name}] {number}/{len(cells)} cells  ETA {left / 60:.1f} min")
        jax.clear_caches()  # programs of many cells would fill the memory
    return results


def _cells(sweep: SweepConfig, arms: Collection[str], seeds: Collection[int]) -> list[Place]:
    """Seed by seed, so that an interrupted sweep can compare all arms of the first ones."""
    known = range(max((len(sweep.seeds_of(arm)) for arm in sweep.arms), default=0))
    if wrong := [arm for arm in arms if arm not in sweep.arms] + [seed for seed in seeds if seed not in known]:
        raise ValueError(f"no arm or seed {wrong[0]!r}; expected {', '.join(sweep.arms)}; seeds 0 to {len(known) - 1}")
    chosen = [arm for arm in sweep.arms if not arms or arm in arms]
    return [Place(arm, s) for s in known for arm in chosen if s in sweep.seeds_of(arm) and (not seeds or s in seeds)]


def _cell(sweep: SweepConfig, run_dir: Path, place: Place, say: Say) -> None:
    shared = run_dir / COMMON
    if sweep.seeded:
        shared = run_dir / f"seed-{place.seed}"
        _link(run_dir / COMMON, shared)
        _run(sweep.base(place.seed), shared, sweep.seeded)
    folder, recipe = cell_folder(run_dir, place.arm, place.seed), sweep.recipe_of(place.arm, place.seed)
    _link(shared, folder)
    own = [name for name in recipe.stages if name not in (*sweep.common, *sweep.seeded)]
    _run(recipe, folder, own)
    cell = Cell(recipe, folder, decoder_stage(recipe), run_dir / COMMON, sweep.measure)
    measure(cell, say)


def cell_folder(run_dir: Path, arm: str, seed: int) -> Path:
    return run_dir / arm / f"seed-{seed}"


def decoder_stage(recipe: RecipeConfig) -> str:
    """The stage whose decoder is the result of ``recipe``. Raises ``ValueError`` if none makes one."""
    makers = [name for name in ("pretrain", *DECODER_STAGES) if name in recipe.stages]
    if not makers:
        raise ValueError(f"stages {', '.join(recipe.stages)} make no decoder; nothing to measure")
    return makers[-1]


def _run(recipe: RecipeConfig, folder: Path, stages: Sequence[str]) -> None:
    """The stages of a recipe; what they kept for an interruption is removed once they are done."""
    run_recipe(replace(recipe, only=()), folder, only=stages)
    for name in stages:
        shutil.rmtree(folder / name / CHECKPOINTS, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """The finished stages of ``source`` and its speech, in ``target`` as links."""
    target.mkdir(parents=True, exist_ok=True)
    done = [name for name in STAGES if (source / name / "done.json").exists()]
    for name in (*LINKED, *done):
        place = target / name
        if (source / name).exists() and not os.path.lexists(place):
            place.symlink_to(os.path.relpath(source / name, target), target_is_directory=True)
