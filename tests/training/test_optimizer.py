"""AdamW and Muon: which weights are orthogonalised, how large their updates are, what a bad kind does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from optax.contrib import MuonDimensionNumbers

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import DecoderConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.nn.linear import Linear
from aqaa_jax.sharding.axes import EMBED, MLP
from aqaa_jax.training.config import OptimizerConfig
from aqaa_jax.training.optimizer import MUON_RMS, make_optimizer, muon_axes
from aqaa_jax.training.state import init_state
from aqaa_jax.training.step import make_train_step

DECODER = DecoderConfig(vocab=40, embed=16, mlp=24, heads=4, kv_heads=2, head_dim=8, layers=3, max_length=32)
FLAT = OptimizerConfig(kind="muon", peak_lr=1.0, warmup_steps=0, final_fraction=1.0, weight_decay=0.0, clip_norm=1e9)


@pytest.fixture(scope="module")
def model():
    return Decoder(DECODER, rngs=nnx.Rngs(0))


def first_update(model, config):
    optimizer = make_optimizer(config, 10)
    keys = iter(jax.random.split(jax.random.key(1), 100))
    grads = jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape), model)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(model), model)
    return {name: np.asarray(value) for name, value in named_weights(updates).items()}


def test_muon_takes_the_hidden_matrices_only(model):
    chosen = {name for name, axes in named_weights(muon_axes(model)).items() if axes is not None}
    matrices = ("attention.wq", "attention.wk", "attention.wv", "attention.wo", "mlp.gate", "mlp.up", "mlp.down")
    assert chosen == {f"blocks.{name}" for name in matrices}
    axes = named_weights(muon_axes(model))
    assert axes["blocks.attention.wq"] == MuonDimensionNumbers(1, (2, 3))  # layers are a batch
    assert axes["blocks.attention.wo"] == MuonDimensionNumbers(3, (1, 2))


def test_a_muon_update_is_nearly_orthogonal_in_every_layer_and_of_adamw_size(model):
    updates = first_update(model, FLAT)
    shapes = {"blocks.attention.wq": (16, 32), "blocks.attention.wo": (32, 16), "blocks.mlp.up": (16, 24)}
    for name, shape in shapes.items():
        for layer in updates[name]:
            singular = np.linalg.svd(layer.reshape(shape), compute_uv=False) / (MUON_RMS * max(shape) ** 0.5)
            assert singular.min() > 0.5 and singular.max() < 1.4, (name, singular)
    for name in ("embedding.table", "head", "norm.scale"):  # Adam's first step: one size for every element
        np.testing.assert_allclose(np.abs(updates[name]), np.abs(updates[name]).flat[0], rtol=1e-3)


def test_muon_learns(model):
    optimizer = make_optimizer(OptimizerConfig(kind="muon", peak_lr=0.02, warmup_steps=2), 60)
    tokens = jax.random.randint(jax.random.key(0), (4, 12), 0, 40)

    def loss(m):
        picked = jnp.take_along_axis(jax.nn.log_softmax(m(tokens[:, :-1])), tokens[:, 1:, None], axis=-1)
        return -jnp.mean(picked)

    @jax.jit
    def step(m, state):
        value, grads = jax.value_and_grad(loss)(m)
        updates, state = optimizer.update(grads, state, m)
        return jax.tree.map(lambda p, u: p + u.astype(p.dtype), m, updates), state, value

    state, values = optimizer.init(model), []
    for _ in range(60):
        model, state, value = step(model, state)
        values.append(float(value))
    assert values[-1] < 0.2 * values[0]


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind 'sgd' is none of adamw, muon"):
        make_optimizer(OptimizerConfig(kind="sgd"), 10)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_first_moment_has_a_dtype_of_its_own(model, kind):
    state = make_optimizer(OptimizerConfig(kind=kind, mu_dtype="bfloat16"), 10).init(jax.tree.map(jnp.float32, model))
    paths = jax.tree_util.tree_leaves_with_path(state)
    moments = {"mu": jnp.bfloat16, "nu": jnp.float32}
    found = [(jax.tree_util.keystr(path), leaf.dtype) for path, leaf in paths if leaf.ndim]
    for name, dtype in moments.items():
        assert {d for path, d in found if f".{name}" in path} == {jnp.dtype(dtype)}


def test_an_unknown_dtype_of_the_first_moment_is_refused():
    with pytest.raises(ValueError, match="mu_dtype 'float8' is none of float32, bfloat16"):
        make_optimizer(OptimizerConfig(mu_dtype="float8"), 10)


class Pair(nnx.Module):
    """Two hidden matrices, with biases."""

    def __init__(self, *, rngs):
        self.up = Linear(8, 16, (EMBED, MLP), rngs=rngs)
        self.down = Linear(16, 8, (MLP, EMBED), rngs=rngs)

    def __call__(self, x):
        return self.down(jnp.tanh(self.up(x)))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_frozen_weights_stay_and_have_no_state(kind):
    frozen = ("up.*", "*.bias")
    config = OptimizerConfig(kind=kind, warmup_steps=0, weight_decay=0.5, clip_norm=0.1, frozen=frozen)
    optimizer = make_optimizer(config, 10)
    state = init_state(Pair(rngs=nnx.Rngs(0)), optimizer, ema=True)
    before = named_weights(jax.tree.map(np.array, state.model))
    x = jax.random.normal(jax.random.key(0), (4, 8))
    moments = [
        jax.tree_util.keystr(path) for path, m in jax.tree_util.tree_leaves_with_path(state.opt_state) if m.ndim > 1
    ]
    assert moments and all("down.kernel" in name for name in moments)

    def loss(m, batch, key):
        return {"fit": (jnp.sum(jnp.square(m(x) - 1.0)), jnp.asarray(x.size, jnp.float32))}

    gradients = named_weights(jax.grad(lambda m: loss(m, None, None)["fit"][0] / x.size)(state.model))
    step = make_train_step(loss, {"fit": 1.0}, optimizer, ema_decay=0.9, frozen=frozen)
    for i in range(2):
        state, metrics = step(state, {}, jax.random.key(1))
        if i == 0:
            norm = np.linalg.norm(gradients["down.kernel"])  # of what is trained
            np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    for tree in (state.model, state.ema):
        for name, value in named_weights(tree).items():
            assert np.array_equal(value, before[name]) == (name != "down.kernel"), name


def test_a_pattern_that_freezes_nothing_is_refused(model):
    with pytest.raises(ValueError, match=r"frozen 'decoder.\*' matches no weight; the names are like"):
        make_optimizer(OptimizerConfig(frozen=("norm.scale", "decoder.*")), 10).init(model)
