"""Step-Audio-AQAA with experts: 128 B weights of which 20 B work on a token.

48 layers of 6,144 with 64 experts, of which a token takes 4, and a shared one as wide as those four together; codec,
vocabulary and vocoder are the published ones. ``:pocket`` and ``:smoke`` are the recipes of ``configs/pocket.py`` with
8 experts, top 2, and a shared one in place of the dense layer, a third of its width each: the same work per token.
"""

import dataclasses
import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from aqaa_jax.config import DecoderConfig, ExpertsConfig, SystemConfig, to_dict

EXPERTS = ExpertsConfig(
    experts=64, top_k=4, mlp=2048, shared_mlp=8192, score="sigmoid", balance_weight=1e-4, bias_rate=1e-3
)
DECODER = DecoderConfig(embed=6144, mlp=0, heads=48, kv_heads=8, head_dim=128, layers=48, experts=EXPERTS)


def get_config(arg: str = "full") -> ConfigDict:
    if arg == "full":
        return ConfigDict(to_dict(SystemConfig(name="aqaa_moe", decoder=DECODER)))
    if arg not in ("pocket", "smoke"):
        raise ValueError(f"configs/aqaa_moe.py:{arg} is not known; expected :full, :pocket or :smoke")
    config = _pocket().get_config(arg)
    config.name = config.system.name = f"{arg}_moe"
    width = config.system.decoder.mlp // 3
    experts = dataclasses.replace(EXPERTS, experts=8, top_k=2, mlp=width, shared_mlp=width)
    config.system.decoder.experts = ConfigDict(to_dict(experts))
    return config


def _pocket():
    spec = importlib.util.spec_from_file_location("pocket", Path(__file__).with_name("pocket.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
