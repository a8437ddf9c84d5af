"""``aqaa train --config=configs/pocket.py [--config.field=value] [--run_dir=DIR] [--stages=a,b] [--jobs=N]``."""

from __future__ import annotations

import sys

from absl import flags

from aqaa_jax.cli import config_file
from aqaa_jax.config import from_dict

HELP = """usage: aqaa train --config=configs/pocket.py [--config.sft1.loop.steps=500 ...]
                  [--run_dir=runs/pocket] [--stages=flow,hift] [--jobs=2]

Trains the stages of a config in order. A finished stage is skipped, an interrupted one goes on where it was saved.
--jobs=N runs up to N stages that need nothing of one another side by side, in processes of their own (CPU only).
"""


def run(argv: list[str]) -> int:
    """Parse flags, build the recipe, run it. Raises ``ValueError`` for a bad flag or config value."""
    if not argv or "--help" in argv or "-h" in argv:
        print(HELP)
        return 0 if argv else 2
    chosen, args = config_file.read("aqaa train", argv, _define)
    from aqaa_jax.recipe.run import run_recipe
    from aqaa_jax.recipe.side_by_side import end_with_parent
    from aqaa_jax.training import distributed
    from aqaa_jax.training.config import RecipeConfig

    end_with_parent()
    recipe = from_dict(RecipeConfig, chosen)
    with distributed.joined():
        again = [sys.executable, "-m", "aqaa_jax.cli.main", "train", *argv]
        run_dir = args.run_dir or f"runs/{recipe.name}"
        run_recipe(recipe, run_dir, only=args.stages or None, jobs=args.jobs, command=again)
    return 0


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("run_dir", None, "where checkpoints and results go", flag_values=values)
    flags.DEFINE_integer("jobs", 1, "stages side by side", lower_bound=1, flag_values=values)
    flags.DEFINE_list("stages", None, "only these stages, in the recipe's order", flag_values=values)
