"""Whisper through transformers, with a tiny model of random weights made on the spot: nothing is downloaded."""

import numpy as np
import pytest

from aqaa_jax.evaluation.transcribe import Whisper

pytestmark = pytest.mark.torch


@pytest.fixture
def tiny(tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers.pre_tokenizers import ByteLevel

    folder = tmp_path / "tiny"
    letters = sorted(ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    vocab = {token: i for i, token in enumerate([*letters, *special])}
    end, start = vocab[special[0]], vocab[special[1]]
    config = transformers.WhisperConfig(
        vocab_size=len(vocab),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_target_positions=16,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.max_length = 12
    model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)
    transformers.WhisperTokenizer(vocab, []).save_pretrained(folder)
    return folder


def test_whisper_gives_a_text_for_every_recording(tiny):
    listen = Whisper(str(tiny))
    tone = np.sin(np.arange(16000) / 20).astype(np.float32)
    heard = listen([(tone, 16000), (np.zeros(22050, np.float32), 22050)], ())
    assert len(heard) == 2 and all(isinstance(text, str) for text in heard)
    assert listen.name == f"whisper, {tiny}"
