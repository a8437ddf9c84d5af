"""The 3 B decoder of Step-Audio-TTS-3B (32 layers of 3,072, 48 query and 4 key/value heads), full codec and vocoder."""

from ml_collections import ConfigDict

from aqaa_jax.config import DecoderConfig, SystemConfig, to_dict


def get_config(arg: str = "full") -> ConfigDict:
    if arg != "full":
        raise ValueError(f"configs/step_3b.py:{arg} is not known; expected :full")
    decoder = DecoderConfig(embed=3072, mlp=8192, heads=48, kv_heads=4, head_dim=64, layers=32)
    return ConfigDict(to_dict(SystemConfig(name="step_3b", decoder=decoder)))
