"""What does leaving audio out of the preference loss save? (AQAA paper, section 3.3, Eq. 2; the paper prints no
figures.)

    aqaa sweep --config=configs/experiments/preference.py:pocket

One sft1 model and one set of pairs; dpo with the loss on the answers' text and end (masked) or on all their ids
(plain), over a range of beta and of steps. Measured before and after: held-out pairs ranked by their text, spoken
accuracy, whether the speech says its own text, and the perplexity of the audio in answers to held-out questions.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

stages = runpy.run_path(str(Path(__file__).parents[1] / "recipe.py"))
VARIANTS = ("pocket", "toy")
SHARED = ("corpus", "tokenize", "sft1", "pairs")
COUNTED = {"masked": ("text", "end"), "plain": ("text", "audio", "markers", "end")}
BETAS, STEPS = (0.03, 0.3), (8, 40)  # beside the middle of both, 0.1 and 20


def get_config(arg: str = "pocket") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"configs/experiments/preference.py:{arg} is not known; expected :pocket or :toy")
    recipe = stages["get_config"]("smoke" if arg == "toy" else "pocket")
    recipe.stages = (*SHARED, "dpo")
    measure = {"kinds": ("preference", "perplexity", "answers"), "questions": 50, "tasks": ("aqtaa",)}
    middle, betas, steps = 20, BETAS, STEPS
    if arg == "toy":
        recipe.corpus.questions = 40
        recipe.pairs.update({"questions": 12, "batch": 12})
        recipe.preference.held_out = 3
        measure["questions"] = 4
        middle, betas, steps = 3, (), ()
    else:
        recipe.corpus.update({"questions": 3000, "voice_utterances": 300})
        recipe.sft1.loop.steps = 150
        recipe.pairs.update({"questions": 500, "temperatures": (2.0, 3.0), "listen": False})
        recipe.preference.held_out = 60
        recipe.dpo.optimizer.peak_lr = 1e-4  # few steps: at the recipe's 2e-5 nothing moves in any arm
    points = [(0.1, middle), *((beta, middle) for beta in betas), *((0.1, n) for n in steps)]
    arms = {"before": {"stages": SHARED, "seeds": 1}}
    for kind in COUNTED:
        arms |= {f"{kind}_b{str(beta)[2:]}_s{n}": _arm(kind, beta, n) for beta, n in points}
    return ConfigDict(
        {
            "name": f"preference-{arg}",
            "config": f"configs/experiments/preference.py:{arg}",
            "recipe": recipe,
            "seeds": 3 if arg == "pocket" else 1,
            "common": SHARED,
            "arms": arms,
            "measure": measure,
            "claims": (
                _claim("plain DPO pulls text and speech apart, masked DPO does not", "alignment_wer", middle, 0.02),
                _claim("plain DPO damages the audio stream, masked DPO does not", "aqtaa audio_ppl", middle, 0.02),
                {
                    "says": "masked DPO makes the better text likelier than before",
                    "metric": "prefers",
                    "better": f"masked_b1_s{middle}",
                    "than": ("before",),
                    "margin": 0.05,
                },
            ),
        }
    )


def _arm(kind: str, beta: float, steps: int) -> dict:
    return {"change": {"preference": {"beta": beta, "counted": COUNTED[kind]}, "dpo": {"loop": {"steps": steps}}}}


def _claim(says: str, metric: str, steps: int, margin: float) -> dict:
    better, than = f"masked_b1_s{steps}", (f"plain_b1_s{steps}",)
    return {"says": says, "metric": metric, "better": better, "than": than, "margin": margin}
