"""Preference pairs from sft1's own answers, then DPO on their text, from sft1 (AQAA paper, section 3.3, Eq. 2).

aqaa train --config=configs/dpo.py            # one part of configs/recipe.py, in the same run folder
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

recipe = runpy.run_path(str(Path(__file__).with_name("recipe.py")))["get_config"]
STAGES = ("pairs", "dpo")


def get_config(arg: str = "pocket") -> ConfigDict:
    whole = recipe(arg, file="dpo")
    return recipe(arg, only=tuple(name for name in STAGES if name in whole.stages), file="dpo")
