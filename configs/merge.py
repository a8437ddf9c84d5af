"""The mean 5:5:1 of sft1, sft2 and dpo, and model folders of all four (AQAA paper, section 3.4, Eq. 3).

aqaa train --config=configs/merge.py            # one part of configs/recipe.py, in the same run folder
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

recipe = runpy.run_path(str(Path(__file__).with_name("recipe.py")))["get_config"]
STAGES = ("merge", "package")


def get_config(arg: str = "pocket") -> ConfigDict:
    whole = recipe(arg, file="merge")
    return recipe(arg, only=tuple(name for name in STAGES if name in whole.stages), file="merge")
