"""Is 5:5:1 a good mean of sft1, sft2 and dpo? (AQAA paper, section 3.4, Eq. 3; the paper prints no ablation.)

    aqaa sweep --config=configs/experiments/merging.py:pocket

For every seed the three models are made once; the arms are points of the simplex between them: its corners, the middles
of its sides, its middle, and 5:5:1. Measured: spoken accuracy, agreement of speech and text, voice control (what sft2
is for) and, for what dpo is for, held-out pairs ranked by their text.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

stages = runpy.run_path(str(Path(__file__).parents[1] / "recipe.py"))
VARIANTS = ("pocket", "toy")
POINTS = {  # weights of sft1, sft2 and dpo
    "5_5_1": (5, 5, 1),
    "sft1": (1, 0, 0),
    "sft2": (0, 1, 0),
    "dpo": (0, 0, 1),
    "sft1_sft2": (1, 1, 0),
    "sft1_dpo": (1, 0, 1),
    "sft2_dpo": (0, 1, 1),
    "thirds": (1, 1, 1),
    "1_1_5": (1, 1, 5),
}


def get_config(arg: str = "pocket") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"configs/experiments/merging.py:{arg} is not known; expected :pocket or :toy")
    recipe = stages["get_config"]("smoke" if arg == "toy" else "pocket")
    trained = ("sft1", "select", "sft2", "pairs", "dpo")
    recipe.stages = ("corpus", "tokenize", *trained, "merge")
    measure = {"kinds": ("answers", "preference"), "questions": 50, "voice_control": 40}
    if arg == "toy":
        recipe.corpus.questions = 40
        recipe.pairs.update({"questions": 12, "batch": 12})
        recipe.preference.held_out = 3
        measure.update({"questions": 4, "voice_control": 3})
    else:
        recipe.corpus.update({"questions": 3000, "voice_utterances": 300})
        recipe.sft1.loop.steps, recipe.sft2.loop.steps, recipe.dpo.loop.steps = 150, 100, 50
        recipe.pairs.update({"questions": 400, "temperatures": (2.0, 3.0), "listen": False})
        recipe.preference.held_out = 40
    corners = ("sft1", "sft2", "dpo")
    points = {name: POINTS[name] for name in ("5_5_1", *corners)} if arg == "toy" else POINTS
    return ConfigDict(
        {
            "name": f"merging-{arg}",
            "config": f"configs/experiments/merging.py:{arg}",
            "recipe": recipe,
            "seeds": 3 if arg == "pocket" else 1,
            "seeded": trained,
            "arms": {
                name: {"change": {"merge": dict(zip(corners, map(float, weights), strict=True))}}
                for name, weights in points.items()
            },
            "measure": measure,
            "claims": (
                _claim("5:5:1 answers better than any of the three alone", "factuality", corners),
                _claim("5:5:1 keeps the voice control that sft2 brings", "voice_control", ("sft1",)),
            ),
        }
    )


def _claim(says: str, metric: str, than: tuple[str, ...]) -> dict:
    return {"says": says, "metric": metric, "better": "5_5_1", "than": than, "margin": 0.02}
