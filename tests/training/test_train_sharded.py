"""Training on a mesh is training on one device: state born in pieces, rows over the batch axes, resumed on another."""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import DecoderConfig, MeshConfig, ShardingConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.losses.cross_entropy import cross_entropy
from aqaa_jax.nn.linear import Embedding, Linear
from aqaa_jax.nn.stack import scan, stack
from aqaa_jax.sharding.axes import ACT_EMBED, ACT_LENGTH, ACT_MLP, BATCH, EMBED, LENGTH, MLP
from aqaa_jax.sharding.mesh import make_mesh, parse_mesh
from aqaa_jax.sharding.partition import constrain, place_rows, state_shardings
from aqaa_jax.sharding.rules import rules_of, strategy
from aqaa_jax.training.config import LoopConfig, OptimizerConfig
from aqaa_jax.training.loop import train
from aqaa_jax.training.optimizer import make_optimizer
from aqaa_jax.training.state import init_state

CONFIG = DecoderConfig(
    vocab=16, embed=16, mlp=16, heads=4, kv_heads=2, head_dim=4, layers=2, dtype="float32", param_dtype="float32"
)
VOCAB = 16
# A large epsilon: Adam divides by the size of the gradient, and would make much of what is rounding in a small one.
OPTIMIZER = OptimizerConfig(peak_lr=1e-2, warmup_steps=1, eps=1e-3)


class Blocks(nnx.Module):
    """A table, and a stack of up and down: little to compile, split like a decoder."""

    def __init__(self, *, rngs):
        self.table = Embedding(VOCAB, 8, rngs=rngs)
        self.up = stack(lambda r: Linear(8, 16, (EMBED, MLP), rngs=r), 2, rngs)
        self.down = stack(lambda r: Linear(16, 8, (MLP, EMBED), rngs=r), 2, rngs)

    def __call__(self, tokens_BL):
        def step(x_BLD, up, down):
            h_BLF = constrain(jnp.tanh(up(x_BLD)), BATCH, LENGTH, ACT_MLP)
            return constrain(x_BLD + down(h_BLF), BATCH, ACT_LENGTH, ACT_EMBED), None

        x_BLD = constrain(self.table(tokens_BL), BATCH, ACT_LENGTH, ACT_EMBED)
        return scan(step, x_BLD, self.up, self.down)[0] @ self.table.table[...].T


@dataclass(frozen=True)
class Next:
    """Predict the next token of rows that count upwards."""

    build: Callable = Blocks
    name: str = "next"
    weights: dict = field(default_factory=lambda: {"token": 1.0})
    stop_at: int = -1

    def init(self, key):
        return self.build(rngs=nnx.Rngs(key))

    def batch(self, step):
        if step == self.stop_at:
            signal.raise_signal(signal.SIGTERM)
        starts_B1 = np.random.default_rng(step).integers(0, VOCAB, (8, 1))
        return {"tokens": ((starts_B1 + np.arange(9)) % VOCAB).astype(np.int32), "scale": np.float32(1)}

    def loss(self, model, batch, key):
        tokens = batch["tokens"]
        mask = np.ones(tokens[:, 1:].shape, np.float32) * batch["scale"]
        return {"token": cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], mask)}

    def adjust(self, state, step):
        return state

    def evaluate(self, model):
        return {"weights": float(len(jax.tree.leaves(model)))}


def run(path, sizes="", name="data", stage=None, **loop):
    sharding = ShardingConfig(mesh=parse_mesh(sizes), strategy=name)
    loop = LoopConfig(steps=4, save_every=4, log_every=1, ema_decay=0.9, sharding=sharding, **loop)
    model = train(stage or Next(), path, loop, OPTIMIZER, log=lambda text: None)
    return model, [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return run(tmp_path_factory.mktemp("single"))


def close(there, here):
    for weight, value in named_weights(there).items():
        np.testing.assert_allclose(named_weights(here)[weight], value, atol=2e-5, rtol=1e-4, err_msg=weight)


@pytest.mark.parametrize(
    ("sizes", "name"),
    [("data=2,fsdp=2,tensor=2", "fsdp_tensor"), ("dcn_data=2,context=2,tensor=2", "tensor_sequence")],
)
def test_training_on_a_mesh(single, tmp_path, sizes, name):
    model, losses = run(tmp_path, sizes, name)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, single[1], rtol=1e-5)
    close(single[0], model)
    kernel = model.up.kernel[...]
    assert kernel.sharding.num_devices == 8 and not kernel.is_fully_replicated


@pytest.mark.long
def test_a_decoder_on_a_mesh(tmp_path):
    stage = Next(lambda rngs: Decoder(CONFIG, rngs=rngs))
    (here, losses), (there, expected) = (
        run(tmp_path / name, sizes, name, stage) for sizes, name in [("fsdp=4,tensor=2", "fsdp_tensor"), ("", "data")]
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    close(there, here)


def test_resumed_on_another_mesh(single, tmp_path):
    with pytest.raises(SystemExit):
        run(tmp_path, "fsdp=4,tensor=2", "fsdp_tensor", Next(stop_at=1))
    model, losses = run(tmp_path, "fsdp=2", "fsdp")
    np.testing.assert_allclose(losses, single[1], rtol=1e-5)
    close(single[0], model)


def places(state, sizes="fsdp=2,tensor=2", name="fsdp_tensor"):
    tree = state_shardings(state, state.model, make_mesh(parse_mesh(sizes)), strategy(name))
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.spec for path, leaf in leaves}


@pytest.mark.parametrize("config", [OptimizerConfig(), OptimizerConfig(kind="muon")], ids=lambda c: c.kind)
def test_moments_are_placed_like_their_weights(config):
    optimizer = make_optimizer(config, 10)
    state = jax.eval_shape(lambda: init_state(Next().init(jax.random.key(0)), optimizer, ema=True))
    found = places(state)
    weights = {n.removeprefix("model."): spec for n, spec in found.items() if n.startswith("model.")}
    assert len(set(weights.values())) == 5
    below = {n: spec for n, spec in found.items() if n.startswith(("opt_state.", "ema."))}
    for name, spec in below.items():
        of = next((w for w in weights if name.endswith("." + w)), None)
        assert spec == weights[of] if of else set(spec) <= {None}, name
    assert sum(name.endswith("up.kernel.value") for name in below) == (3 if config.kind == "adamw" else 2)


def test_factored_moments_keep_the_axes_of_the_dimensions_they_have():
    optimizer = optax.scale_by_factored_rms(min_dim_size_to_factor=4)
    state = jax.eval_shape(lambda: init_state(Linear(8, 16, (EMBED, MLP), rngs=nnx.Rngs(0)), optimizer, ema=False))
    found, spec = places(state), jax.sharding.PartitionSpec
    rows = {name.split(".", 1)[1]: s for name, s in found.items() if name.startswith("opt_state")}
    assert rows["v_row.kernel.value"] == spec("fsdp") and rows["v_col.kernel.value"] == spec("tensor")
    assert rows["v.kernel.value"] == spec(None) and rows["v.bias.value"] == spec("tensor")


def test_an_array_of_no_weight_is_an_error():
    model = Linear(8, 16, (EMBED, MLP), rngs=nnx.Rngs(0))
    for state in ({"kernels": np.ones((8, 16))}, {"kernel": np.ones((8, 15))}):
        with pytest.raises(ValueError, match="comes from no weight of the model"):
            state_shardings(state, model, make_mesh(MeshConfig()), strategy("data"))


def test_rows_are_placed_over_the_batch_axes():
    mesh, table = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), rules_of(ShardingConfig(strategy="fsdp_tensor"))
    batch = {"x": np.arange(24.0).reshape(8, 3), "n": 3}
    placed = place_rows(batch, mesh, table)
    assert placed["x"].sharding.shard_shape((8, 3)) == (2, 3) and placed["n"].is_fully_replicated
    np.testing.assert_array_equal(placed["x"], batch["x"])
    with pytest.raises(ValueError, match=r"batch\['x'\]: dimension 'batch' of size 7 does not split evenly over 4"):
        place_rows({"x": batch["x"][:7]}, mesh, table)
