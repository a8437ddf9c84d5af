"""Selected spoken answers, from sft1 (AQAA paper, section 3.2).

aqaa train --config=configs/sft2.py            # one part of configs/recipe.py, in the same run folder
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

recipe = runpy.run_path(str(Path(__file__).with_name("recipe.py")))["get_config"]
STAGES = ("select", "sft2")


def get_config(arg: str = "pocket") -> ConfigDict:
    whole = recipe(arg, file="sft2")
    return recipe(arg, only=tuple(name for name in STAGES if name in whole.stages), file="sft2")
