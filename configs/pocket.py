"""The pocket model: every module of the system, small, trained from nothing on two CPU cores.

    aqaa train --config=configs/pocket.py --run_dir=runs/pocket        # or: make pocket

The same modules as ``configs/aqaa_130b.py``; only numbers differ. ``:smoke`` runs the whole recipe in a minute
or two at a size that learns nothing, for tests.
"""

from ml_collections import ConfigDict

TEXT_VOCAB = 512  # ids below the first audio id: control 0-67, bytes and text pieces


def _stage(steps: int, batch: int, length: int, lr: float, **loop) -> dict:
    return {
        "loop": {"steps": steps, "log_every": 20, "save_every": 200, **loop},
        "optimizer": {"peak_lr": lr, "warmup_steps": min(100, steps // 5)},
        "batch": batch,
        "length": length,
    }


def _language(steps: int, tokens: int, lr: float, final_fraction: float) -> dict:
    return {
        "loop": {"steps": steps, "log_every": 25, "save_every": 100, "ema_decay": 0.998},
        "optimizer": {
            "peak_lr": lr,
            "final_fraction": final_fraction,
            "warmup_steps": min(100, steps // 5),
            "weight_decay": 0.02,
        },
        "tokens": tokens,
    }


def get_config(arg: str = "pocket") -> ConfigDict:
    if arg not in ("pocket", "smoke"):
        raise ValueError(f"configs/pocket.py:{arg} is not known; expected :pocket or :smoke")
    config = ConfigDict(
        {
            "name": arg,
            "system": {
                "name": arg,
                "tokenizer": {
                    "linguistic": {"embed": 160, "heads": 4, "mlp": 512, "layers": 5, "codes": 1024},
                    "semantic": {"embed": 160, "heads": 4, "mlp": 640, "layers": 3, "codes": 4096},
                },
                "vocab": {"size": TEXT_VOCAB + 5120, "audio_start": TEXT_VOCAB},
                "decoder": {
                    "vocab": TEXT_VOCAB + 5120,
                    "embed": 192,
                    "mlp": 512,
                    "heads": 6,
                    "kv_heads": 2,
                    "head_dim": 32,
                    "layers": 6,
                    # Steeper than the published series (0.5 at most for 6 heads): six heads must tell neighbours apart.
                    "alibi_slopes": (8.0, 1.2, 0.1, 3.0, 0.5, 0.02),
                    "max_length": 1024,
                    "dtype": "float32",
                    "param_dtype": "float32",
                },
                "vocoder": {
                    "flow": {
                        "temperature": 0.0,  # so small an estimator leaves noise behind: start from none
                        "guidance": 0.0,
                        "mel_mean": -5.0,
                        "mel_std": 2.5,
                        "encoder": {"embed": 128, "heads": 4, "mlp": 384, "layers": 2},
                        "estimator": {"channels": (64, 64), "heads": 2, "head_dim": 32, "blocks": 1, "mid_blocks": 2},
                    },
                    "hift": {"channels": 64, "f0_channels": 64},
                },
                "sampling": {"temperature": 0.0, "max_new_tokens": 400},
            },
            "corpus": {"codec_utterances": 6000, "voice_utterances": 1500, "questions": 16000},
            "linguistic": _stage(1100, 32, 48, 2e-3),
            "semantic": _stage(1200, 32, 72, 2e-3),
            "flow": _stage(800, 12, 134, 2e-3, ema_decay=0.99),
            "hift": _stage(900, 8, 32, 1.5e-3, ema_decay=0.99),
            "pretrain": _language(800, 2048, 2e-3, 0.6),
            "pretrain_mix": {"asr": 3.0, "tts": 0.0, "tqtaa": 1.5, "aqta": 1.0, "aqtaa": 2.5},
            "sft": _language(1000, 2048, 1.5e-3, 0.02),
            "sft_mix": {"asr": 1.0, "tts": 0.3, "tqtaa": 0.7, "aqta": 0.5, "aqtaa": 5.0},
        }
    )
    if arg == "smoke":
        _shrink(config)
    return config


def _shrink(config: ConfigDict) -> None:
    """The whole recipe in a few minutes, at a size that learns nothing."""
    config.corpus.update({"codec_utterances": 300, "voice_utterances": 60, "questions": 200})
    tokenizer = config.system.tokenizer
    tokenizer.linguistic.update({"embed": 32, "heads": 2, "mlp": 64, "layers": 2})
    tokenizer.semantic.update({"embed": 32, "heads": 2, "mlp": 64, "layers": 1})
    config.system.decoder.update({"embed": 32, "mlp": 64, "heads": 2, "kv_heads": 1, "head_dim": 16, "layers": 2})
    config.system.decoder.alibi_slopes = (2.0, 0.1)
    config.system.vocoder.flow.encoder.update({"embed": 32, "heads": 2, "mlp": 64, "layers": 1})
    config.system.vocoder.flow.estimator.update({"channels": (32, 32), "head_dim": 16, "mid_blocks": 1})
    config.system.vocoder.hift.update({"channels": 16, "f0_channels": 16})
    for stage in ("linguistic", "semantic", "flow", "hift", "pretrain", "sft"):
        config[stage].loop.steps = 12
        config[stage].loop.log_every = 6
        config[stage].optimizer.warmup_steps = 3
