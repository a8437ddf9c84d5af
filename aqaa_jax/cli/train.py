"""``aqaa train --config=configs/pocket.py [--config.field=value] [--run_dir=DIR] [--stages=a,b]``."""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from aqaa_jax.config import from_dict

HELP = """usage: aqaa train --config=configs/pocket.py [--config.sft.loop.steps=500 ...]
                  [--run_dir=runs/pocket] [--stages=flow,hift]

Trains the stages of a config in order. A finished stage is skipped, an interrupted one goes on where it was saved.
"""


def run(argv: list[str]) -> int:
    """Parse flags, build the recipe, run it. Raises ``ValueError`` for a bad flag or config value."""
    if not argv or "--help" in argv or "-h" in argv:
        print(HELP)
        return 0 if argv else 2
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", None, "the recipe", flag_values=values, lock_config=True)
    run_dir = flags.DEFINE_string("run_dir", None, "where checkpoints and results go", flag_values=values)
    stages = flags.DEFINE_list("stages", None, "only these stages, in the recipe's order", flag_values=values)
    try:
        rest = values(["aqaa train", *argv])
    except (flags.Error, AttributeError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{error}") from None
    if len(rest) > 1:
        raise ValueError(f"unexpected argument {rest[1]!r}")
    if config.value is None:
        raise ValueError("--config=FILE is required, for instance --config=configs/pocket.py")
    from aqaa_jax.training.config import RecipeConfig
    from aqaa_jax.training.recipe import run_recipe

    recipe = from_dict(RecipeConfig, config.value.to_dict())
    run_recipe(recipe, run_dir.value or f"runs/{recipe.name}", only=stages.value)
    return 0
