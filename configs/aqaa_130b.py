"""Step-Audio-AQAA at its published size: the values are the defaults of ``aqaa_jax/config.py``.

130 B decoder (88 layers of 12,288, 96 query and 8 key/value heads, 74,752 ids), Paraformer-large and S3 tokenizers,
CosyVoice-300M-25Hz vocoder (arXiv 2506.08967; Step-Audio-Chat, Step-Audio-Tokenizer, Step-Audio-TTS-3B).

``:train`` is the recipe of its decoder on 1,024 v5p chips, 4 Mi tokens a step: weights over a plane of 16 x 16 chips,
four replicas (``docs/scale.md``). Other slices take other values of ``loop`` and ``remat`` on the command line.
"""

from ml_collections import ConfigDict

from aqaa_jax.config import SystemConfig, to_dict


def get_config(arg: str = "full") -> ConfigDict:
    if arg not in ("full", "train"):
        raise ValueError(f"configs/aqaa_130b.py:{arg} is not known; expected :full or :train")
    config = ConfigDict(to_dict(SystemConfig()))
    return config if arg == "full" else _train(config)


def _train(system: ConfigDict) -> ConfigDict:
    """Float32 weights and moments, bfloat16 products; every product is kept for the backward pass."""
    system.decoder.update({"param_dtype": "float32", "remat": "save_products"})
    return ConfigDict(
        {
            "name": "aqaa_130b",
            "system": system,
            "pretrain": _stage(steps=20000, lr=1e-4),
            "sft1": _stage(steps=4000, lr=2e-5),
            "sft2": _stage(steps=1000, lr=1e-5),
            "dpo": _stage(steps=1000, lr=1e-6),
        }
    )


def _stage(steps: int, lr: float) -> dict:
    return {
        "batch": 1024,
        "length": 4096,
        "tokens": 1024 * 4096,
        "loop": {
            "steps": steps,
            "save_every": 500,
            "by_rows": True,
            "rings": True,
            "sharding": {"strategy": "hsdp", "mesh": {"data": 4, "fsdp": 256}},
        },
        "optimizer": {"peak_lr": lr, "warmup_steps": 200, "beta2": 0.95, "weight_decay": 0.1, "final_fraction": 0.1},
    }
