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


def _language(steps: int, tokens: int, lr: float) -> dict:
    return {
        "loop": {"steps": steps, "log_every": 50, "save_every": 500, "ema_decay": 0.998},
        "optimizer": {"peak_lr": lr, "warmup_steps": min(200, steps // 5), "weight_decay": 0.02},
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
                    "max_length": 1024,
                    "dtype": "float32",
                    "param_dtype": "float32",
                },
                "vocoder": {
                    "flow": {
                        "mel_mean": -5.0,
                        "mel_std": 2.5,
                        "encoder": {"embed": 128, "heads": 4, "mlp": 384, "layers": 2},
                        "estimator": {"channels": (96, 96), "heads": 2, "head_dim": 32, "blocks": 1, "mid_blocks": 2},
                    },
                    "hift": {"channels": 64, "f0_channels": 64},
                },
                "sampling": {"temperature": 0.0, "max_new_tokens": 400},
            },
            "corpus": {"codec_utterances": 6000, "voice_utterances": 1500, "questions": 16000},
            "linguistic": _stage(1100, 32, 48, 2e-3),
            "semantic": _stage(1200, 32, 72, 2e-3),
            "flow": _stage(1200, 16, 124, 1e-3, ema_decay=0.995),
            "hift": _stage(1200, 12, 32, 1e-3, ema_decay=0.995),
            "pretrain": _language(3000, 4096, 2e-3),
            "pretrain_mix": {"asr": 3.0, "tts": 1.0, "tqtaa": 2.0, "aqta": 0.0, "aqtaa": 2.0},
            "sft": _language(9000, 4096, 1.5e-3),
            "sft_mix": {"asr": 1.0, "tts": 0.5, "tqtaa": 1.0, "aqta": 0.5, "aqtaa": 5.0},
        }
    )
    return config
