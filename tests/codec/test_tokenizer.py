"""Waveforms to codes: any length, any company, at once or streamed."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.codec.s3 import count_vectors
from aqaa_jax.codec.tokenizer import DualTokenizer, LinguisticTokenizer, _batches, _padded_length
from aqaa_jax.config import LinguisticConfig, SemanticConfig, TokenizerConfig
from aqaa_jax.dsp.fbank import count_frames

CONFIG = TokenizerConfig(
    linguistic=LinguisticConfig(embed=16, heads=2, mlp=32, layers=2, codes=32),
    semantic=SemanticConfig(num_mels=16, embed=16, heads=2, mlp=32, layers=1, codes=64),
)


@pytest.fixture(scope="module")
def tokenizer():
    return DualTokenizer(CONFIG, rngs=nnx.Rngs(0))


def noise(samples, seed):
    return (0.2 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def test_counts_and_ranges(tokenizer):
    lengths = [0, 300, 480, 3840, 16000, 20001]
    for n, codes in zip(lengths, tokenizer.encode([noise(n, n) for n in lengths]), strict=True):
        assert len(codes.linguistic) == count_frames(n, CONFIG.linguistic)
        assert len(codes.semantic) == (count_vectors(n // 160) if n >= 480 else 0)
        assert codes.linguistic.dtype == codes.semantic.dtype == np.int32
        assert all(0 <= c < 32 for c in codes.linguistic) and all(0 <= c < 64 for c in codes.semantic)


def test_company_does_not_matter(tokenizer):
    wavs = [noise(n, n) for n in (16000, 9000, 17000, 480)]
    together = tokenizer.encode(wavs)
    for wav, codes in zip(wavs, together, strict=True):
        (alone,) = tokenizer.encode([wav])
        assert np.array_equal(alone.linguistic, codes.linguistic) and np.array_equal(alone.semantic, codes.semantic)
    assert tokenizer.encode([]) == []


def test_semantic_pieces_of_thirty_seconds_are_independent(tokenizer):
    plain = DualTokenizer.of(dataclasses.replace(CONFIG, energy_norm=False), tokenizer.linguistic, tokenizer.semantic)
    wav = noise(480000 + 4000, 0)
    long, first, last = plain.encode([wav, wav[:480000], wav[480000:]])
    assert len(long.semantic) == 750 + 7
    assert np.array_equal(long.semantic, np.concatenate([first.semantic, last.semantic]))


def test_streamed_equals_at_once(tokenizer):
    wav = noise(21000, 5)
    plain = DualTokenizer.of(dataclasses.replace(CONFIG, energy_norm=False), tokenizer.linguistic, tokenizer.semantic)
    (expected,) = plain.encode([wav])
    out, state = [], tokenizer.linguistic.start()
    for begin, end in ((0, 100), (100, 9000), (9000, 9000), (9000, 21000)):
        codes, state = tokenizer.linguistic.push(state, wav[begin:end], final=end == 21000)
        out.append(codes)
    assert np.array_equal(np.concatenate(out), expected.linguistic)


def test_preparation(tokenizer):
    wav = np.concatenate([np.zeros(8000, np.float32), noise(8000, 1), np.zeros(8000, np.float32)])
    assert np.isclose(np.abs(tokenizer.prepare(wav, 16000)).max(), 0.999)
    assert len(tokenizer.prepare(wav, 48000)) == 8000
    trimming = DualTokenizer.of(dataclasses.replace(CONFIG, trim=True), tokenizer.linguistic, tokenizer.semantic)
    assert len(trimming.prepare(wav, 16000)) < 14000
    with pytest.raises(ValueError, match=r"one dimension; got shape \(2, 10\)"):
        tokenizer.encode([np.zeros((2, 10), np.float32)])


def test_dither_needs_a_generator():
    config = dataclasses.replace(CONFIG.linguistic, dither=1.0)
    model = LinguisticTokenizer(config, rngs=nnx.Rngs(0))
    wav = noise(8000, 2)
    with pytest.raises(ValueError, match=r"dither is 1\.0"):
        model.features(wav)
    a, b = model.features(wav, np.random.default_rng(0)), model.features(wav, np.random.default_rng(1))
    assert a.shape == b.shape and np.abs(a - b).max() > 0
    assert np.array_equal(a, model.features(wav, np.random.default_rng(0)))


def test_few_shapes():
    sizes = {_padded_length(n, None) for n in range(1, 3000)}
    assert sizes == {16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072}
    assert all(n <= _padded_length(n, None) < max(17, 1.51 * n) for n in range(1, 3000))
    assert _padded_length(2900, 3000) == 3000
    rows = [row for batch, _ in _batches([5, 0, 9, 700, 11, 12], 64, None) for row in batch]
    assert sorted(rows) == [0, 2, 3, 4, 5]
    assert all(len(batch) & (len(batch) - 1) == 0 for batch, _ in _batches([9] * 11, 64, None))


def test_weight_names_are_stable(tokenizer):
    names = set(named_weights(tokenizer.linguistic)) | set(named_weights(tokenizer.semantic))
    assert {
        "encoder.cmvn_shift",
        "encoder.first.query.kernel",
        "encoder.blocks.fsmn",
        "encoder.conv1.kernel",
        "encoder.blocks.up.kernel",
        "codebook.table",
    } <= names


def test_full_size_shapes():
    """The published sizes, without their memory: 157,975,648 and 130,629,120 weights and buffers upstream."""
    model = jax.eval_shape(lambda: DualTokenizer(TokenizerConfig(), rngs=nnx.Rngs(0)))
    linguistic = sum(w.size for n, w in named_weights(model.linguistic).items() if "cmvn" not in n)
    semantic = sum(w.size for w in named_weights(model.semantic).values())
    assert linguistic == 157_975_648 + 1024 * 512
    assert semantic + 1500 * 1280 in (130_629_120, 130_629_120 + 1500 * 1280)
