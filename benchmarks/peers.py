"""The PyTorch side of ``make bench``: published modules from PyPI, in an environment of their own.

funasr (the Paraformer encoder in its streaming form, which is how the published tokenizer runs it), s3tokenizer,
chatterbox-tts (a port of CosyVoice's velocity estimator and HiFT; configured to the CosyVoice-1 sizes) and
transformers (Llama). Their packages load far more than these modules need: modules that only the rest of a package
wants are replaced by empty ones.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import items
import torch

Run = Callable[[], object]


def _empty(*names: str) -> None:
    for name in names:
        sys.modules[name] = MagicMock(spec=ModuleType(name))


def _quiet(run: Callable[[], object]) -> Run:
    def inference() -> object:
        with torch.inference_mode():
            return run()

    return inference


def linguistic() -> Run:
    _bare("funasr")
    from funasr.models.scama.encoder import SANMEncoderChunkOpt

    model = SANMEncoderChunkOpt(
        input_size=560,
        output_size=512,
        attention_heads=4,
        linear_units=2048,
        num_blocks=50,
        input_layer="pe_online",
        selfattention_layer_type="sanm",
        kernel_size=11,
        sanm_shfit=0,
    ).eval()

    def run() -> None:
        cache = {
            "start_idx": 0,
            "chunk_size": [0, 4, 5],
            "encoder_chunk_look_back": 4,
            "last_chunk": False,
            "opt": None,
            "feats": torch.zeros(1, 5, 560),
            "tail_chunk": False,
        }
        for start in range(0, items.LINGUISTIC_FRAMES, 4):
            frames = torch.ones(1, min(4, items.LINGUISTIC_FRAMES - start), 560)
            model.forward_chunk(frames, torch.tensor([frames.shape[1]]), cache=cache)

    return _quiet(run)


def semantic() -> Run:
    _empty("torchaudio", "onnx")
    _bare("s3tokenizer")
    from s3tokenizer.model import S3Tokenizer

    model = S3Tokenizer("speech_tokenizer_v1_25hz").eval()
    mel = torch.ones(1, 128, items.WHISPER_FRAMES)
    return _quiet(lambda: model.quantize(mel, torch.tensor([items.WHISPER_FRAMES])))


def flow() -> Run:
    _bare("chatterbox", "chatterbox.models", "chatterbox.models.s3gen")
    from chatterbox.models.s3gen.decoder import ConditionalDecoder

    model = ConditionalDecoder(causal=False, channels=[256, 256], n_blocks=4, num_mid_blocks=12).eval()
    T = items.MEL_FRAMES
    mask, mu = torch.ones(2, 1, T), torch.ones(2, 80, T)

    def run() -> torch.Tensor:
        x = torch.ones(1, 80, T)
        for step in range(items.FLOW_STEPS):
            both = torch.cat([x, x])
            with_condition, free = model(both, mask, mu, torch.full((2,), step / 10), torch.ones(2, 80), mu).chunk(2)
            x = x + 0.1 * (1.7 * with_condition - 0.7 * free)
        return x

    return _quiet(run)


def hift() -> Run:
    _bare("chatterbox", "chatterbox.models", "chatterbox.models.s3gen")
    from chatterbox.models.s3gen.f0_predictor import ConvRNNF0Predictor
    from chatterbox.models.s3gen.hifigan import HiFTGenerator

    model = HiFTGenerator(f0_predictor=ConvRNNF0Predictor()).eval()
    model.remove_weight_norm = None
    for module in model.modules():  # as for inference: weights without their norm
        for name in list(getattr(module, "parametrizations", {})):
            torch.nn.utils.parametrize.remove_parametrizations(module, name)
    mel = torch.ones(1, 80, items.MEL_FRAMES)
    return _quiet(lambda: model.inference(mel))


def decode() -> Run:
    from transformers import LlamaConfig, LlamaForCausalLM

    d = items.DECODER
    config = LlamaConfig(
        vocab_size=d["vocab"],
        hidden_size=d["embed"],
        intermediate_size=d["mlp"],
        num_attention_heads=d["heads"],
        num_key_value_heads=d["kv_heads"],
        head_dim=d["head_dim"],
        num_hidden_layers=d["layers"],
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    prompt = torch.arange(10, 10 + items.PROMPT)[None]
    return _quiet(lambda: model.generate(prompt, max_new_tokens=items.NEW_TOKENS, do_sample=False))


def _bare(*packages: str) -> None:
    """Make packages importable without running their own start-up, which loads the whole product."""
    for name in packages:
        top, *rest = name.split(".")
        root = Path(importlib.util.find_spec(top).submodule_search_locations[0])
        module = ModuleType(name)
        module.__path__ = [str(root.joinpath(*rest))]
        module.__spec__ = importlib.util.spec_from_loader(name, None, is_package=True)
        module.__spec__.submodule_search_locations = module.__path__
        sys.modules[name] = module


def decode_float32() -> Run:
    return decode()


if __name__ == "__main__":
    items.main({f.__name__: f for f in (linguistic, semantic, flow, hift, decode, decode_float32)})
