"""``aqaa train --config=configs/pocket.py [--config.field=value] [--run_dir=DIR] [--stages=a,b]``."""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from aqaa_jax.config import from_dict

HELP = """usage: aqaa train --config=configs/pocket.py [--config.sft1.loop.steps=500 ...]
                  [--run_dir=runs/pocket] [--stages=flow,hift]

Trains the stages of a config in order. A finished stage is skipped, an interrupted one goes on where it was saved.
"""


def run(argv: list[str]) -> int:
    """Parse flags, build the recipe, run it. Raises ``ValueError`` for a bad flag or config value."""
    if not argv or "--help" in argv or "-h" in argv:
        print(HELP)
        return 0 if argv else 2
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        "config", None, "the recipe", flag_values=values, lock_config=True, sys_argv=["aqaa train", *argv]
    )
    run_dir = flags.DEFINE_string("run_dir", None, "where checkpoints and results go", flag_values=values)
    stages = flags.DEFINE_list("stages", None, "only these stages, in the recipe's order", flag_values=values)
    try:
        rest = values(["aqaa train", *argv])
        # A file that cannot be loaded is reported by the first look into the config.
        chosen = None if config.value is None else config.value.to_dict()
    except (AttributeError, KeyError) as error:
        name = str(error).strip("\"'")
        raise ValueError(f"no such config field: {name!r}") from None
    except (flags.Error, TypeError, OSError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    if len(rest) > 1:
        raise ValueError(f"unexpected argument {rest[1]!r}")
    if chosen is None:
        raise ValueError("--config=FILE is required, for instance --config=configs/pocket.py")
    from aqaa_jax.recipe.run import run_recipe
    from aqaa_jax.training import distributed
    from aqaa_jax.training.config import RecipeConfig

    recipe = from_dict(RecipeConfig, chosen)
    with distributed.joined():
        run_recipe(recipe, run_dir.value or f"runs/{recipe.name}", only=stages.value or None)
    return 0
