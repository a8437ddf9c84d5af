"""The decoder against the published Step1 module with random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from aqaa_jax.checkpoint.tree import named_weights, with_weights
from aqaa_jax.config import SamplingConfig
from aqaa_jax.convert import step1
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.inference.generate import generate
from aqaa_jax.losses.cross_entropy import cross_entropy
from aqaa_jax.losses.masked import mean
from aqaa_jax.nn.alibi import alibi_slopes, causal_distance

pytestmark = pytest.mark.parity
LOGITS = 2e-5  # the README allows 1e-4; the reference differs from its own float64 by 4e-6


@pytest.fixture(scope="module")
def io(golden):
    return golden("step1/io.npz")


@pytest.fixture(scope="module")
def state(golden):
    return load_file(golden("step1/model.safetensors"))


@pytest.fixture(scope="module")
def decoder(golden, state):
    config = step1.decoder_config(json.loads(golden("step1/config.json").read_text()))
    abstract = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    return with_weights(abstract, step1.from_upstream(state, config))


def test_alibi(golden):
    data = golden("step1/alibi.npz")
    slopes = {name: value for name, value in data.items() if name.startswith("slopes_")}
    assert slopes
    for name, expected in slopes.items():
        np.testing.assert_allclose(alibi_slopes(int(name.split("_")[1])), expected, atol=1e-7, rtol=0)
    bias = data["bias_small"]
    place = jnp.arange(bias.shape[-1])[None]
    ours = -alibi_slopes(bias.shape[1])[:, None, None] * np.asarray(causal_distance(place, place))
    past = np.isfinite(bias[0])
    np.testing.assert_allclose(ours[past], bias[0][past], atol=1e-6, rtol=0)
    assert (ours[~past] < -1e20).all()


def test_full_forward(decoder, io):
    tokens = io["input_ids"]
    np.testing.assert_allclose(jax.jit(lambda m, t: m(t))(decoder, tokens), io["logits"], atol=LOGITS, rtol=0)
    states = jax.jit(lambda m, t: m.layer_inputs(t))(decoder, tokens)
    np.testing.assert_allclose(states, io["hidden_states"][:-1], atol=LOGITS, rtol=0)
    final = jax.jit(lambda m, t: m.hidden(t))(decoder, tokens)
    np.testing.assert_allclose(final, io["hidden_states"][-1], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("unrolled", [False, True])
def test_cached_pieces(decoder, io, unrolled):
    tokens, lengths = io["input_ids"], io["step_lengths"]
    B, T = tokens.shape
    model, cache, place, pieces = decoder.unrolled() if unrolled else decoder, decoder.empty_cache(B, T + 3), 0, []
    feed = jax.jit(lambda m, t, c: m(t, cache=c))
    for length in lengths.tolist():
        logits, cache = feed(model, tokens[:, place : place + length], cache)
        pieces.append(logits)
        place += length
    assert place == T and (cache.length_B == T).all()
    after_prompt = np.concatenate(pieces[1:], axis=1)
    np.testing.assert_allclose(after_prompt, io["logits_incremental"], atol=LOGITS, rtol=0)
    np.testing.assert_allclose(after_prompt, io["logits"][:, lengths[0] :], atol=LOGITS, rtol=0)
    for ours, name in ((cache.k, "cache_k_layer0"), (cache.v, "cache_v_layer0")):
        np.testing.assert_allclose(ours[0, :, :, :T].swapaxes(1, 2).reshape(B, T, -1), io[name], atol=1e-5, rtol=0)


def test_greedy(decoder, io):
    prompts = io["input_ids"][:, : int(io["greedy_prompt_len"])]
    expected, margins = io["greedy_tokens"], io["greedy_margins"]
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=expected.shape[1])
    answers = generate(decoder, list(prompts), sampling, stop_ids=(), key=jax.random.key(0))
    assert margins.min() > 10 * LOGITS
    np.testing.assert_array_equal(np.stack([a.ids for a in answers]), expected)
    context = np.concatenate([prompts, expected], axis=1)
    top2 = np.sort(np.asarray(decoder(context))[:, prompts.shape[1] - 1 : -1], axis=-1)[..., -2:]
    np.testing.assert_allclose(top2[..., 1] - top2[..., 0], margins, atol=2 * LOGITS, rtol=0)


def test_loss_and_gradients(decoder, io, golden):
    tokens, labels = io["input_ids"], io["labels"]

    def loss(model):
        return mean(*cross_entropy(model(tokens)[:, :-1], labels[:, 1:], labels[:, 1:] >= 0))

    value, grads = jax.jit(jax.value_and_grad(loss))(decoder)
    np.testing.assert_allclose(value, io["loss"], rtol=2e-6)
    grads = step1.to_upstream({k: np.asarray(v) for k, v in named_weights(grads).items()}, decoder.config)
    expected = load_file(golden("step1/grads.safetensors"))
    assert set(grads) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(grads[name], value, atol=1e-6, rtol=1e-5, err_msg=name)


def test_state_dict_round_trip(decoder, state):
    back = step1.to_upstream({k: np.asarray(v) for k, v in named_weights(decoder).items()}, decoder.config)
    assert {k: v.shape for k, v in back.items()} == step1.published_shapes(decoder.config)
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
