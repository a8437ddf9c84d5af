"""The decoder with experts: causal, packed as alone, cached as full, however its layers are run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import DecoderConfig, ExpertsConfig
from aqaa_jax.decoder.model import Decoder

CONFIG = DecoderConfig(
    vocab=48,
    embed=16,
    mlp=24,
    heads=4,
    kv_heads=2,
    head_dim=4,
    layers=2,
    dtype="float32",
    param_dtype="float32",
    experts=ExpertsConfig(experts=5, top_k=2, mlp=12, shared_mlp=8, score="sigmoid", bias_rate=0.01),
)
CLOSE = {"atol": 2e-5, "rtol": 1e-5}
TOKENS = jax.random.randint(jax.random.key(1), (2, 9), 0, CONFIG.vocab)


@pytest.fixture(scope="module")
def decoder():
    model = jax.tree.map(lambda w: 3 * w, Decoder(CONFIG, rngs=nnx.Rngs(0)))
    model.blocks.mlp.bias.set_value(jax.random.normal(jax.random.key(2), (2, 5)))
    return model


@jax.jit
def forward(model, tokens, segments=None):
    return model.hidden(tokens, segment_ids_BL=segments, with_aux=True)


@jax.jit
def feed(model, tokens, cache):
    return model(tokens, cache=cache)


def test_packed_rows_are_as_if_alone_and_count_once(decoder):
    packed = jnp.concatenate([TOKENS[:1, :5], TOKENS[1:, :4], jnp.zeros((1, 3), jnp.int32)], axis=1)
    segments = jnp.asarray([[1] * 5 + [2] * 4 + [0] * 3])
    out, stats = forward(decoder, packed, segments)
    alone = [forward(decoder, TOKENS[:1, :5]), forward(decoder, TOKENS[1:, :4])]
    np.testing.assert_allclose(out[:, :5], alone[0][0], **CLOSE)
    np.testing.assert_allclose(out[:, 5:9], alone[1][0], **CLOSE)
    np.testing.assert_array_equal(stats.load_E, alone[0][1].load_E + alone[1][1].load_E)
    assert stats.load_E.shape == (2, 5) and (stats.load_E.sum(axis=1) == 18).all()


@pytest.mark.parametrize("unrolled", [False, True])
def test_cached_steps_equal_the_full_forward_every_time(decoder, unrolled):
    model = decoder.unrolled() if unrolled else decoder
    expected = model.logits(forward(decoder, TOKENS)[0])
    runs = []
    for _ in range(2):
        logits, cache = feed(model, TOKENS[:, :6], model.empty_cache(2, 9))
        pieces = [logits]
        for at in range(6, 9):
            logits, cache = feed(model, TOKENS[:, at : at + 1], cache)
            pieces.append(logits)
        runs.append(jnp.concatenate(pieces, axis=1))
    np.testing.assert_allclose(runs[0], expected, **CLOSE)
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("change", [{"remat": "save_experts"}, {"scan": False}], ids=str)
def test_how_layers_run_changes_neither_value_nor_gradient(decoder, change):
    def loss(model):
        hidden_BLD, stats = model.hidden(TOKENS, with_aux=True)
        return jnp.mean(hidden_BLD**2 * jnp.arange(16)) + 1e-3 * jnp.sum(stats.z), stats.load_E

    other = jax.tree.map(lambda w: w, decoder)
    other.config = dataclasses.replace(CONFIG, **change)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, load), grads = step(decoder)
    (again, load_again), grads_again = step(other)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    np.testing.assert_array_equal(load_again, load)
    for name, grad in named_weights(grads).items():
        expected = named_weights(grads_again)[name]
        np.testing.assert_allclose(grad, expected, atol=1e-5 * np.abs(expected).max() + 1e-9, rtol=1e-4, err_msg=name)


def test_int8_is_refused(decoder):
    with pytest.raises(ValueError, match="int8 weights: expected a dense decoder"):
        decoder.int8()


def test_dense_decoder_has_no_statistics():
    model = Decoder(dataclasses.replace(CONFIG, experts=None), rngs=nnx.Rngs(0))
    assert model.hidden(TOKENS, with_aux=True)[1] is None
