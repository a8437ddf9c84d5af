"""The mixture of experts: against a loop over tokens, as the dense layer, and what must not depend on what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import ExpertsConfig
from aqaa_jax.nn.mlp import SwiGLU
from aqaa_jax.nn.moe import MoE, balanced

CONFIG = ExpertsConfig(experts=6, top_k=2, mlp=24, shared_mlp=20, bias_rate=0.1)
D = 16


def build(**changes):
    model = MoE(D, dataclasses.replace(CONFIG, **changes), rngs=nnx.Rngs(0))
    return jax.tree.map(lambda w: 3 * w, model)  # larger than at birth: differences must show


def states(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), (*shape, D))


@jax.jit
def forward(model, x, real=None):
    return model(x, real)


def silu(x):
    return x / (1 + np.exp(-x))


def by_loop(model, x_BLD):
    """The layer a token at a time, in float64; with the number of tokens of each expert."""
    w, c = {k: np.asarray(v, np.float64) for k, v in named_weights(model).items()}, model.config
    out, load = np.zeros(x_BLD.shape), np.zeros(c.experts)
    for at in np.ndindex(x_BLD.shape[:2]):
        x = np.asarray(x_BLD[at], np.float64)
        logits = x @ w["router"]
        scores = np.exp(logits) / np.exp(logits).sum() if c.score == "softmax" else 1 / (1 + np.exp(-logits))
        chosen = np.argsort(-(scores + w.get("bias", 0)))[: c.top_k]
        total = scores[chosen].sum() if c.normalise else 1.0
        for e in chosen:
            out[at] += scores[e] / total * (silu(x @ w["gate"][e]) * (x @ w["up"][e])) @ w["down"][e]
            load[e] += 1
        if c.shared_mlp:
            out[at] += (silu(x @ w["shared.gate"]) * (x @ w["shared.up"])) @ w["shared.down"]
    return out, load


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"normalise": False}, {"shared_mlp": 0, "bias_rate": 0.0}, {"top_k": 6}, {"top_k": 1}],
    ids=str,
)
def test_as_a_loop_over_tokens(score, changes):
    model, x = build(score=score, **changes), states(3, 7)
    if model.bias is not None:
        model.bias.set_value(jnp.linspace(-0.3, 0.4, CONFIG.experts))
    out, stats = forward(model, x)
    expected, load = by_loop(model, x)
    np.testing.assert_allclose(out, expected, atol=2e-5, rtol=1e-5)
    np.testing.assert_array_equal(stats.load_E, load)
    assert stats.dropped == 0


def test_weights_and_their_axes():
    model = build()
    axes = {n: leaf.get_metadata()["axes"] for n, leaf in vars(model).items() if isinstance(leaf, nnx.Variable)}
    assert axes["gate"] == axes["up"] == ("experts", "expert_embed", "mlp")
    assert axes["down"] == ("experts", "mlp", "expert_embed")
    assert {n: w.shape for n, w in named_weights(model).items()} == {
        "router": (16, 6),
        "bias": (6,),
        "gate": (6, 16, 24),
        "up": (6, 16, 24),
        "down": (6, 24, 16),
        "shared.gate": (16, 20),
        "shared.up": (16, 20),
        "shared.down": (20, 16),
    }
    narrow = MoE(512, ExpertsConfig(experts=64, top_k=1, mlp=256), rngs=nnx.Rngs(0))
    assert abs(np.std(narrow.gate[...]) * np.sqrt(512) - 1) < 0.02  # born as a dense layer is, however many


def test_gradient_is_that_of_the_sum_over_all_experts():
    """Against the layer that computes every expert for every token and multiplies by a weight, mostly zero."""
    model, x = build(), states(2, 9)

    def everything(model, x_BLD):
        c = model.config
        scores_BLE = jax.nn.softmax(x_BLD @ model.router[...])
        chosen_BLk = jax.lax.top_k(scores_BLE + model.bias[...], c.top_k)[1]
        scores_BLE = scores_BLE * jax.nn.one_hot(chosen_BLk, c.experts).sum(2)
        hidden_BLEF = jnp.einsum("bld,edf->blef", x_BLD, model.gate[...])
        hidden_BLEF = jax.nn.silu(hidden_BLEF) * jnp.einsum("bld,edf->blef", x_BLD, model.up[...])
        weights_BLE = scores_BLE / scores_BLE.sum(-1, keepdims=True)
        return jnp.einsum("blef,efd,ble->bld", hidden_BLEF, model.down[...], weights_BLE) + model.shared(x_BLD)

    def loss(layer):
        return jax.jit(jax.value_and_grad(lambda m, x: jnp.sum(layer(m, x) ** 2), argnums=(0, 1)))

    value, (grads, dx) = loss(lambda m, x: m(x)[0])(model, x)
    expected, (grads_expected, dx_expected) = loss(everything)(model, x)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(dx, dx_expected, atol=1e-4, rtol=1e-4)
    for name, grad in named_weights(grads).items():
        np.testing.assert_allclose(grad, named_weights(grads_expected)[name], atol=2e-4, rtol=1e-4, err_msg=name)
        assert (np.abs(grad).max() > 0) == (name != "bias"), name


def test_one_expert_is_the_dense_layer_bit_for_bit():
    dense, x = SwiGLU(D, 24, rngs=nnx.Rngs(2)), states(3, 8)
    for score in ("softmax", "sigmoid"):
        one = build(experts=1, top_k=1, shared_mlp=0, score=score)
        for name in ("gate", "up", "down"):
            getattr(one, name).set_value(getattr(dense, name)[...][None])
        np.testing.assert_array_equal(jax.jit(lambda m, x: m(x)[0])(one, x), jax.jit(lambda m, x: m(x))(dense, x))


def test_the_order_of_the_experts_means_nothing():
    model, x = build(), states(2, 11)
    model.bias.set_value(jnp.linspace(-0.2, 0.2, CONFIG.experts))
    order = jnp.asarray([3, 0, 5, 1, 4, 2])
    other = jax.tree.map(lambda w: w, model)
    for name in ("gate", "up", "down", "bias"):
        getattr(other, name).set_value(getattr(model, name)[...][order])
    other.router.set_value(model.router[...][:, order])
    (out, stats), (again, stats_again) = forward(model, x), forward(other, x)
    np.testing.assert_allclose(again, out, atol=1e-6, rtol=1e-6)
    np.testing.assert_array_equal(stats_again.load_E, stats.load_E[order])


def test_all_tokens_on_one_expert_are_all_answered():
    model, x = build(top_k=1, shared_mlp=0), states(2, 40)
    model.bias.set_value(jnp.asarray([0.0, 0, 100, 0, 0, 0]))
    out, stats = forward(model, x)
    np.testing.assert_array_equal(stats.load_E, [0, 0, 80, 0, 0, 0])
    np.testing.assert_allclose(out, by_loop(model, x)[0], atol=2e-5, rtol=1e-5)
    assert stats.dropped == 0


def test_a_token_sees_no_other_and_padding_does_not_count():
    model, x = build(), states(2, 6)
    real = jnp.asarray([[1] * 6, [1] * 2 + [0] * 4], bool)
    other = jnp.where(real[..., None], x, states(2, 6, seed=9))
    (out, stats), (again, stats_again) = forward(model, x, real), forward(model, other, real)
    np.testing.assert_array_equal(out[real], again[real])
    for name, value in stats._asdict().items():
        np.testing.assert_array_equal(value, getattr(stats_again, name), err_msg=name)
    np.testing.assert_allclose(stats.share_E, stats.load_E / 16, rtol=1e-6)
    alone = [forward(model, x[:1])[1], forward(model, x[1:, :2])[1]]
    for name in ("load_E", "probability_E", "z", "entropy"):  # sums: they add up over batches
        total = sum(getattr(s, name) for s in alone)
        np.testing.assert_allclose(getattr(stats, name), total, rtol=1e-5, err_msg=name)
    assert stats.load_E.sum() == 16
    np.testing.assert_allclose(stats.probability_E.sum(), 8, rtol=1e-6)
    assert 0 < stats.entropy / 8 < np.log(6)


def test_bias_moves_against_the_load():
    load = jnp.asarray([[4.0, 1, 1], [2, 2, 2]])
    np.testing.assert_allclose(balanced(jnp.zeros((2, 3)), load, 0.25), [[-0.25, 0.25, 0.25], [0, 0, 0]])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"top_k": 7}, "top_k 7: expected at least 1 and at most the 6"),
        ({"top_k": 0}, "top_k 0"),
        ({"score": "tanh"}, "score 'tanh': expected one of softmax, sigmoid"),
    ],
)
def test_a_bad_config_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
