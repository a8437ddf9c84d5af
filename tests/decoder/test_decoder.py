"""Properties of the decoder: what a token may see, caching, packing, rematerialisation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import DecoderConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.nn.remat import POLICIES

CONFIG = DecoderConfig(
    vocab=48, embed=16, mlp=24, heads=6, kv_heads=2, head_dim=4, layers=2, dtype="float32", param_dtype="float32"
)
CHANGES = [*({"remat": name} for name in POLICIES), {"unroll": 2}, {"scan": False}, {"scan": False, "remat": "full"}]
CLOSE = {"atol": 2e-5, "rtol": 1e-5}  # float32 rounding of logits of size 1 to 10


@pytest.fixture(scope="module")
def decoder():
    # Larger weights than at birth: differences in what is seen must show.
    return jax.tree.map(lambda w: 3 * w, Decoder(CONFIG, rngs=nnx.Rngs(0)))


def ids(seed, *shape):
    return jax.random.randint(jax.random.key(seed), shape, 0, CONFIG.vocab)


@jax.jit
def forward(model, tokens, segment_ids=None):
    return model(tokens, segment_ids_BL=segment_ids)


@jax.jit
def feed(model, tokens, cache, real=None):
    return model(tokens, segment_ids_BL=real, cache=cache)


def test_weight_layout(decoder):
    shapes = {name: value.shape for name, value in named_weights(decoder).items()}
    assert shapes == {
        "embedding.table": (48, 16),
        "blocks.attention_norm.scale": (2, 16),
        "blocks.attention.wq": (2, 16, 6, 4),
        "blocks.attention.wk": (2, 16, 2, 4),
        "blocks.attention.wv": (2, 16, 2, 4),
        "blocks.attention.wo": (2, 6, 4, 16),
        "blocks.mlp_norm.scale": (2, 16),
        "blocks.mlp.gate": (2, 16, 24),
        "blocks.mlp.up": (2, 16, 24),
        "blocks.mlp.down": (2, 24, 16),
        "norm.scale": (16,),
        "head": (16, 48),
    }


def test_a_later_token_changes_nothing_earlier(decoder):
    tokens = ids(1, 2, 9)
    changed = tokens.at[:, 5].set((tokens[:, 5] + 1) % CONFIG.vocab)
    before, after = forward(decoder, tokens), forward(decoder, changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (np.abs(before - after)[:, 5:].max(-1) > 1e-4).all()


def test_padding_on_either_side_changes_nothing(decoder):
    tokens = ids(2, 2, 6)
    expected = forward(decoder, tokens)
    for left, right in ((0, 3), (3, 0)):
        padded = jnp.pad(tokens, ((0, 0), (left, right)), constant_values=7)
        segments = jnp.pad(jnp.ones_like(tokens), ((0, 0), (left, right)))
        out = forward(decoder, padded, segments)
        assert np.isfinite(out).all()
        np.testing.assert_allclose(out[:, left : left + 6], expected, **CLOSE)


def test_packed_rows_are_as_if_alone(decoder):
    first, second = ids(3, 1, 4), ids(4, 1, 5)
    packed = jnp.concatenate([first, second, jnp.zeros((1, 2), jnp.int32)], axis=1)
    segments = jnp.asarray([[1] * 4 + [2] * 5 + [0] * 2])
    out = forward(decoder, packed, segments)
    np.testing.assert_allclose(out[:, :4], forward(decoder, first), **CLOSE)
    np.testing.assert_allclose(out[:, 4:9], forward(decoder, second), **CLOSE)


def test_given_positions_override(decoder):
    tokens = ids(5, 1, 6)
    out = [decoder(tokens, positions_BL=jnp.asarray([p])) for p in (range(6), range(10, 16), range(0, 12, 2))]
    np.testing.assert_array_equal(out[0], decoder(tokens))
    np.testing.assert_allclose(out[1], out[0], **CLOSE)  # only distances count
    assert np.abs(out[2] - out[0]).max() > 1e-4
    with pytest.raises(ValueError, match="positions_BL"):
        decoder(tokens, positions_BL=jnp.asarray([range(6)]), cache=decoder.empty_cache(1, 6))


@pytest.mark.parametrize("unrolled", [False, True])
def test_cached_rows_of_different_lengths_equal_the_full_forward(decoder, unrolled):
    model = decoder.unrolled() if unrolled else decoder
    tokens, lengths = ids(6, 3, 12), np.array([4, 6, 1])
    expected = forward(decoder, tokens)
    real = (jnp.arange(6) < lengths[:, None]).astype(jnp.int32)
    prompts = jnp.where(real, tokens[:, :6], 9)
    logits, cache = feed(model, prompts, model.empty_cache(3, 12), real)  # prefill, padded on the right
    np.testing.assert_array_equal(cache.length_B, lengths)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], expected[row, :length], **CLOSE)
    for size in (3, 1, 1):  # a chunk, then single tokens
        at = cache.length_B[:, None] + jnp.arange(size)
        logits, cache = feed(model, jnp.take_along_axis(tokens, at, axis=1), cache)
        np.testing.assert_allclose(logits, np.take_along_axis(np.asarray(expected), at[..., None], axis=1), **CLOSE)
    # Padding next to the end of the cache must not push real entries back.
    real = jnp.asarray([[1, 1, 1], [1, 0, 0], [1, 1, 1]])
    at = jnp.minimum(cache.length_B[:, None] + jnp.arange(3), 11)
    logits, cache = feed(model, jnp.take_along_axis(tokens, at, axis=1), cache, real)
    np.testing.assert_allclose(logits[1, 0], expected[1, 11], **CLOSE)
    np.testing.assert_allclose(logits[0], expected[0, 9:12], **CLOSE)
    np.testing.assert_array_equal(cache.length_B, [12, 12, 9])


def test_layer_inputs_and_unrolled(decoder, as_for_users):
    tokens, unrolled = ids(7, 2, 5), decoder.unrolled()
    states = decoder.layer_inputs(tokens)
    np.testing.assert_array_equal(states[0], decoder.embedding.table[...][tokens])
    np.testing.assert_allclose(unrolled.layer_inputs(tokens), states, **CLOSE)
    np.testing.assert_allclose(unrolled(tokens), decoder(tokens), **CLOSE)
    hidden = decoder.hidden(tokens)
    np.testing.assert_allclose(decoder.logits(hidden[:, 2:3]), decoder(tokens)[:, 2:3], **CLOSE)
    assert unrolled.blocks[0].attention.wq.get_metadata()["axes"] == ("embed", "heads", "head_dim")


def test_int8_is_the_model_of_the_rounded_weights_with_and_without_a_cache(decoder):
    tokens, rounded, plain = ids(11, 2, 7), decoder.int8(), decoder.unrolled()
    for ours, theirs in zip(plain.blocks, rounded.blocks, strict=True):
        for name in ("wq", "wk", "wv", "wo"):
            getattr(ours.attention, name).set_value(getattr(theirs.attention, name).dequantised())
        for name in ("gate", "up", "down"):
            getattr(ours.mlp, name).set_value(getattr(theirs.mlp, name).dequantised())
    plain.head.set_value(rounded.head.dequantised())
    expected = forward(plain, tokens)
    np.testing.assert_allclose(forward(rounded, tokens), expected, rtol=1e-4, atol=1e-4)
    error = forward(rounded, tokens) - forward(decoder, tokens)
    assert 0 < jnp.std(error) < 0.06 * jnp.std(expected)
    logits, cache = feed(rounded, tokens[:, :4], rounded.empty_cache(2, 7))
    more, _ = feed(rounded, tokens[:, 4:], cache)
    np.testing.assert_allclose(jnp.concatenate([logits, more], axis=1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [*({"remat": name} for name in POLICIES), {"unroll": 2}, {"scan": False}, {"scan": False, "remat": "full"}],
    ids=str,
)
def test_how_layers_run_changes_neither_value_nor_gradient(decoder, change):
    tokens = ids(8, 2, 7)
    other = jax.tree.map(lambda w: w, decoder)
    other.config = dataclasses.replace(CONFIG, **change)
    loss = jax.jit(jax.value_and_grad(lambda m: jnp.mean(jax.nn.logsumexp(m(tokens), axis=-1))))
    value, grads = loss(decoder)
    again, grads_again = loss(other)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    for name, grad in named_weights(grads).items():
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, name
        np.testing.assert_allclose(named_weights(grads_again)[name], grad, atol=1e-6, rtol=1e-4, err_msg=name)


def test_gradient_of_a_padded_row_is_finite_and_its_own(decoder):
    tokens = ids(9, 2, 5)
    segments = jnp.asarray([[1, 1, 1, 0, 0], [0] * 5])

    def loss(model, tokens):
        return jnp.sum(jax.nn.logsumexp(model(tokens, segment_ids_BL=segments), axis=-1) * (segments > 0))

    grad = jax.jit(jax.grad(loss))
    grads, others = grad(decoder, tokens), grad(decoder, jnp.where(segments > 0, tokens, 11))
    for name, value in named_weights(grads).items():
        assert np.isfinite(value).all(), name
        np.testing.assert_allclose(named_weights(others)[name], value, atol=1e-6, err_msg=name)


def test_bfloat16_is_near_float32():
    full = Decoder(CONFIG, rngs=nnx.Rngs(0))
    low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), full)
    low.config = dataclasses.replace(CONFIG, dtype="bfloat16", param_dtype="bfloat16")
    tokens = ids(10, 2, 6)
    out, cache = low(tokens, cache=low.empty_cache(2, 8))
    assert out.dtype == jnp.float32 and cache.k.dtype == jnp.bfloat16
    assert np.abs(out - full(tokens)).max() < 0.05 * np.abs(out).max()


def test_heads_must_divide():
    with pytest.raises(ValueError, match="6 heads"):
        Decoder(dataclasses.replace(CONFIG, kv_heads=4), rngs=nnx.Rngs(0))


def test_int8_layers_in_a_stack_are_those_apart(decoder):
    tokens, apart, stacked = ids(11, 2, 7), decoder.int8(), decoder.int8(apart=False)
    np.testing.assert_allclose(stacked(tokens), apart(tokens), atol=1e-5)
    whole = stacked.blocks.attention.wq
    assert whole.values.get_metadata()["axes"] == decoder.blocks.attention.wq.get_metadata()["axes"]
    assert whole.scale.get_metadata()["axes"] == ("layers", "heads", "head_dim")
    assert decoder.blocks.attention.wq.get_metadata()["axes"] == ("layers", "embed", "heads", "head_dim")
