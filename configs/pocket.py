"""The pocket model: every module of the system, small, trained from nothing on two CPU cores.

    aqaa train --config=configs/pocket.py --run_dir=runs/pocket        # or: make pocket

The same modules as ``configs/aqaa_130b.py``; only numbers differ. ``:more`` goes on from the shipped model: its
tokenizers and flow are kept, its decoder and HiFT are trained further. ``:smoke`` runs the whole recipe in a minute
or two at a size that learns nothing, for tests.
"""

from ml_collections import ConfigDict

from aqaa_jax.config import ShardingConfig, to_dict

TEXT_VOCAB = 1024  # ids below the first audio id: control 0-67, bytes and text pieces
# Twice or three times what is learnt last, and a part of the heard codes replaced by others: voices differ in them.
HEARD = {"emphasis": ("addition", "addition", "subtraction", "subtraction", "numbers"), "code_noise": 0.04}


def _stage(steps: int, batch: int, length: int, lr: float, **loop) -> dict:
    return {
        "loop": {"steps": steps, "log_every": 20, "save_every": 200, "sharding": to_dict(ShardingConfig()), **loop},
        "optimizer": {"peak_lr": lr, "warmup_steps": min(100, steps // 5)},
        "batch": batch,
        "length": length,
    }


def _language(steps: int, lr: float, final_fraction: float) -> dict:
    return {
        "loop": {
            "steps": steps,
            "log_every": 100,
            "save_every": 500,
            "ema_decay": 0.999,
            "sharding": to_dict(ShardingConfig()),
        },
        "optimizer": {
            "kind": "muon",
            "peak_lr": lr,
            "final_fraction": final_fraction,
            "warmup_steps": min(100, steps // 5),
            "weight_decay": 0.02,
        },
        "tokens": 2048,
    }


def get_config(arg: str = "pocket") -> ConfigDict:
    if arg not in ("pocket", "more", "smoke"):
        raise ValueError(f"configs/pocket.py:{arg} is not known; expected :pocket, :more or :smoke")
    config = ConfigDict(
        {
            "name": arg,
            "config": f"configs/pocket.py:{arg}",
            "start": "",
            "system": {
                "name": "pocket" if arg == "more" else arg,
                "tokenizer": {
                    "linguistic": {"embed": 160, "heads": 4, "mlp": 512, "layers": 5, "codes": 1024},
                    "semantic": {"embed": 160, "heads": 4, "mlp": 640, "layers": 3, "codes": 4096},
                },
                "vocab": {"size": TEXT_VOCAB + 5120, "audio_start": TEXT_VOCAB},
                "decoder": {
                    "vocab": TEXT_VOCAB + 5120,
                    "embed": 256,
                    "mlp": 768,
                    "heads": 8,
                    "kv_heads": 2,
                    "head_dim": 32,
                    "layers": 4,
                    # Steeper than the published series (0.5 at most): a small model must tell neighbours apart.
                    "alibi_slopes": (8.0, 2.0, 0.5, 0.08, 4.0, 1.0, 0.2, 0.02),
                    "max_length": 1024,
                    "scan": False,
                    "dtype": "float32",
                    "param_dtype": "float32",
                },
                "vocoder": {
                    "flow": {
                        # Small networks leave most of unit noise behind: train with less of it and sample from
                        # none, without the free half of guidance. One voice: no prompts.
                        "training_noise": 0.3,
                        "temperature": 0.0,
                        "guidance": 0.0,
                        "condition_dropout": 0.0,
                        "prompt_probability": 0.0,
                        "mel_mean": -5.0,
                        "mel_std": 2.5,
                        "encoder": {"embed": 128, "heads": 4, "mlp": 512, "layers": 4},
                        "estimator": {"channels": (96, 96), "heads": 2, "head_dim": 32, "blocks": 1, "mid_blocks": 2},
                    },
                    "hift": {"channels": 64, "f0_channels": 64},
                },
                "sampling": {"temperature": 0.0, "max_new_tokens": 400, "hold_pattern": True},
            },
            "text_pieces": 1000,  # most words of the domain whole
            "corpus": {"codec_utterances": 6000, "voice_utterances": 1500, "questions": 48000},
            "linguistic": _stage(1100, 32, 48, 2e-3),
            "semantic": _stage(1200, 32, 72, 2e-3),
            "flow": _stage(2000, 12, 134, 2e-3, ema_decay=0.99),
            "hift": _stage(2600, 8, 32, 1.5e-3, ema_decay=0.99),
            "pretrain": _language(1800, 2e-3, 0.6),
            "pretrain_mix": {"asr": 2.0, "tts": 0.2, "tqta": 2.0, "tqtaa": 1.0, "aqta": 4.0, "aqtaa": 2.0, **HEARD},
            "sft1": _language(3200, 1.5e-3, 0.02),
            "sft1_mix": {"asr": 1.0, "tts": 0.2, "tqta": 1.0, "tqtaa": 0.5, "aqta": 4.0, "aqtaa": 4.0, **HEARD},
        }
    )
    if arg == "more":
        _go_on(config)
    if arg == "smoke":
        _shrink(config)
    return config


def _go_on(config: ConfigDict) -> None:
    """From the shipped model: HiFT and decoder trained on, over more questions, with weight on what it knows least."""
    config.start = "aqaa_jax/assets/pocket"
    config.stages = ("corpus", "tokenize", "hift", "sft1", "package")
    config.hift = ConfigDict(_stage(2400, 8, 32, 7e-4, ema_decay=0.99))
    config.sft1 = ConfigDict(_language(4400, 1.2e-3, 0.02))
    config.sft1_mix.update({"asr": 1.5, "tqta": 2.0, "transcript_first": 1.0})


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
    for stage in ("linguistic", "semantic", "flow", "hift", "pretrain", "sft1"):
        config[stage].loop.steps = 12
        config[stage].loop.log_every = 6
        config[stage].optimizer.warmup_steps = 3
