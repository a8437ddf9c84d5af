"""Full-parameter training on spoken questions with written and with spoken answers (AQAA paper, section 3.2).

aqaa train --config=configs/sft1.py            # one part of configs/recipe.py, in the same run folder
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

recipe = runpy.run_path(str(Path(__file__).with_name("recipe.py")))["get_config"]
STAGES = ("corpus", "linguistic", "semantic", "tokenize", "flow", "hift", "pretrain", "sft1")


def get_config(arg: str = "pocket") -> ConfigDict:
    whole = recipe(arg, file="sft1")
    return recipe(arg, only=tuple(name for name in STAGES if name in whole.stages), file="sft1")
