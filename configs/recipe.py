"""The post-training of Step-Audio-AQAA (paper, section 3): sft1, then sft2 and dpo from it, and their mean.

    aqaa train --config=configs/recipe.py            # all stages; sft1.py, sft2.py, dpo.py, merge.py run one each

`:pocket` (default) goes on from the shipped pocket model; `:more` does so with the long sft1 of `pocket.py:more`, as
the shipped model was made; `:scratch` makes everything from nothing first; `:smoke` is `:pocket` with a handful of
steps, for tests; `:full` has the published sizes and, where the papers give them, the published values. All five files
share one run folder, `runs/recipe-VARIANT`.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

# 1,024 v5p chips
AT_SCALE = {"by_rows": True, "rings": True, "sharding": {"strategy": "hsdp", "mesh": {"data": 4, "fsdp": 256}}}
VARIANTS = ("pocket", "more", "scratch", "smoke", "full")
POST_TRAINING = ("sft1", "select", "sft2", "pairs", "dpo", "merge", "package")
PREFERENCE = {
    "beta": 0.1,
    "label_smoothing": 0.0,
    "kind": "sigmoid",  # or ipo
    "length_normalised": False,
    "counted": ("text", "end"),  # with "markers" and "audio" too: plain DPO
}
PAIRS = {"seed": 0, "questions": 2000, "temperatures": (0.0, 0.7, 1.0, 1.3), "top_p": 1.0, "listen": True}
MERGE = {"sft1": 5.0, "sft2": 5.0, "dpo": 1.0}  # paper, Eq. 3
pocket = runpy.run_path(str(Path(__file__).with_name("pocket.py")))["get_config"]
full_size = runpy.run_path(str(Path(__file__).with_name("aqaa_130b.py")))["get_config"]


def get_config(arg: str = "pocket", only: tuple[str, ...] = (), file: str = "recipe") -> ConfigDict:
    """The recipe; ``only`` are the stages that the command runs of it."""
    if arg not in VARIANTS:
        names = ", ".join(f":{name}" for name in VARIANTS)
        raise ValueError(f"configs/{file}.py:{arg} is not known; expected one of {names}")
    config = _full() if arg == "full" else _pocket(arg)
    config.update({"name": f"recipe-{arg}", "config": f"configs/{file}.py:{arg}", "only": only})
    return config


def _stage(steps: int, tokens: int, lr: float, final_fraction: float, **loop) -> dict:
    return {
        "loop": {"steps": steps, "log_every": 20, "save_every": 100, **loop},
        "optimizer": {"peak_lr": lr, "final_fraction": final_fraction, "warmup_steps": max(1, steps // 20)},
        "tokens": tokens,
    }


def _pocket(arg: str) -> ConfigDict:
    config = pocket("more" if arg == "more" else "pocket")
    if arg == "more":
        config.stages = ("corpus", "tokenize", "hift", *POST_TRAINING)
    elif arg != "scratch":
        config.start = "aqaa_jax/assets/pocket"
        config.stages = ("corpus", "tokenize", *POST_TRAINING)
        config.corpus.questions = 24000
        # The shipped decoder has been through its own sft1: a short one, at what its learning rate ended with.
        config.sft1 = ConfigDict(_stage(300, 2048, 3e-4, 0.1, ema_decay=0.99))
    else:
        before = ("corpus", "linguistic", "semantic", "tokenize", "flow", "hift", "pretrain")
        config.stages = (*before, *POST_TRAINING)
    config.sft2 = ConfigDict(_stage(200, 2048, 2e-4, 0.1, ema_decay=0.99))
    # Spoken answers only, and twice as often where a way of speaking is asked for: the skill this stage is for.
    config.sft2_mix = ConfigDict(
        {"asr": 0.0, "tts": 0.0, "tqtaa": 0.0, "aqta": 0.0, "aqtaa": 1.0, "emphasis": ("slow", "fast", "high", "low")}
    )
    config.dpo = ConfigDict(_stage(100, 4096, 2e-5, 0.1))
    config.select = ConfigDict({"listen": True})
    config.preference, config.merge = ConfigDict(PREFERENCE), ConfigDict(MERGE)
    config.pairs = ConfigDict({**PAIRS, "own_answers": False, "batch": 50})
    if arg == "more":
        config.pairs.update({"questions": 600, "listen": False})  # its text is what tells a pair apart
    if arg == "smoke":
        config.corpus.update({"voice_utterances": 10, "questions": 60})
        for name in ("sft1", "sft2", "dpo"):
            config[name].loop.update({"steps": 4, "log_every": 2})
            config[name].tokens = 512
        config.sft1_mix = ConfigDict({"asr": 0.0, "tts": 0.0, "tqtaa": 0.0, "aqta": 1.0, "aqtaa": 1.0})
        config.select.listen = False
        config.pairs.update({"questions": 8, "temperatures": (4.0,), "batch": 4})
    return config


def _full() -> ConfigDict:
    """130 B parameters, from an imported model folder.

    Rates: sft1 as the parent's chat model of this size, 5.656e-5 to 5.656e-6 over one epoch; sft2 as its 3 B speech
    model, 2e-5 to 2e-6 (arXiv 2502.11946, sections 5.1-5.2). The AQAA paper gives no rate for dpo, no step counts, no
    batch: those are ours, and so is beta.
    """
    system = full_size()
    system.decoder.update({"param_dtype": "float32", "remat": "save_products"})  # as configs/aqaa_130b.py:train
    return ConfigDict(
        {
            "start": "models/aqaa_130b",
            "system": system,
            "stages": ("corpus", "tokenize", *POST_TRAINING),
            "corpus": {"questions": 16000},
            "sft1": _stage(2000, 1 << 20, 5.656e-5, 0.1, **AT_SCALE),
            "sft1_mix": {"asr": 0.0, "tts": 0.0, "tqtaa": 0.0, "aqta": 1.0, "aqtaa": 1.0},
            "sft2": _stage(500, 1 << 20, 2e-5, 0.1, **AT_SCALE),
            "sft2_mix": {"asr": 0.0, "tts": 0.0, "tqtaa": 0.0, "aqta": 0.0, "aqtaa": 1.0},
            "select": {"listen": True},
            "pairs": {**PAIRS, "questions": 16000, "temperatures": (0.7, 0.7, 0.7, 0.7), "top_p": 0.9},
            "dpo": _stage(200, 1 << 19, 5e-7, 0.1, **AT_SCALE),
            "preference": PREFERENCE,
            "merge": MERGE,
        }
    )
