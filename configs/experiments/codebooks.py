"""Does each codebook become easier to predict beside the other? (AQAA paper, section 2.1; Step-Audio report, figure 4.)

    aqaa sweep --config=configs/experiments/codebooks.py:pocket

One decoder sees linguistic ids only, one semantic ids only, one both, woven 2:3; everything else is the same:
decoders from nothing, the same utterances to draw from, the same number of steps of the same number of ids (so a
single stream sees more utterances). Measured: perplexity of each stream in held-out sentences.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

pocket = runpy.run_path(str(Path(__file__).parents[1] / "pocket.py"))
VARIANTS = ("pocket", "toy")
# Step-Audio report, figure 4, at the end of the run, read off the picture (nats to perplexity). The panels carry the
# labels "linguistic" and "semantic", which by section 4.4 of the same report look swapped; both are given as printed.
PAPER = {
    "dual": {"linguistic ppl, as labelled": 14.2, "semantic ppl, as labelled": 6.09},
    "linguistic": {"linguistic ppl, as labelled": 25.6},
    "semantic": {"semantic ppl, as labelled": 6.99},
}


def get_config(arg: str = "pocket") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"configs/experiments/codebooks.py:{arg} is not known; expected :pocket or :toy")
    recipe = pocket["get_config"]("pocket")
    recipe.update({"start": "aqaa_jax/assets/pocket", "stages": ("corpus", "tokenize", "pretrain")})
    recipe.corpus.update({"questions": 2000, "voice_utterances": 3000})
    recipe.pretrain = ConfigDict(pocket["_language"](400, 2e-3, 0.1))
    recipe.pretrain_mix = ConfigDict(
        {"asr": 0.0, "tts": 1.0, "continuation": 1.0, "tqtaa": 0.0, "aqta": 0.0, "aqtaa": 0.0}
    )
    measure = {"kinds": ("perplexity",), "questions": 200, "tasks": ("tts", "continuation")}
    if arg == "toy":
        _toy(recipe)
        measure["questions"] = 30
    return ConfigDict(
        {
            "name": f"codebooks-{arg}",
            "config": f"configs/experiments/codebooks.py:{arg}",
            "recipe": recipe,
            "seeds": 3 if arg == "pocket" else 1,
            "common": ("corpus", "tokenize"),
            "arms": {
                "dual": {"paper": PAPER["dual"]},
                **{
                    name: {"change": {"pretrain_mix": {"streams": (name,)}}, "paper": PAPER[name]}
                    for name in ("linguistic", "semantic")
                },
            },
            "measure": measure,
            "claims": tuple(
                {
                    "says": f"{stream} ids are easier to predict with the other codebook than alone",
                    "metric": f"tts {stream}_ppl",
                    "better": "dual",
                    "than": (stream,),
                    "margin": 0.02,
                }
                for stream in ("linguistic", "semantic")
            ),
        }
    )


def _toy(recipe: ConfigDict) -> None:
    """A few minutes on two cores, and nothing learnt."""
    recipe.corpus.update({"questions": 60, "voice_utterances": 60})
    recipe.system.decoder.update({"embed": 64, "mlp": 128, "heads": 4, "kv_heads": 2, "head_dim": 16, "layers": 2})
    recipe.system.decoder.alibi_slopes = (8.0, 0.5, 0.08, 0.02)
    recipe.pretrain.tokens = 1024
    recipe.pretrain.loop.update({"steps": 24, "log_every": 12, "ema_decay": 0.9})
    recipe.pretrain.optimizer.warmup_steps = 5
