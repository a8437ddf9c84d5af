"""The loop: a resumed run is the run, SIGTERM saves, a bad step is skipped, terms are normalised once."""

import json
import os
import signal
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.config import MeshConfig, ShardingConfig
from aqaa_jax.nn.linear import Linear
from aqaa_jax.sharding import partition
from aqaa_jax.sharding.axes import EMBED, MLP
from aqaa_jax.sharding.mesh import make_mesh
from aqaa_jax.sharding.rules import rules_of
from aqaa_jax.training import executable
from aqaa_jax.training.config import LoopConfig, OptimizerConfig
from aqaa_jax.training.loop import train
from aqaa_jax.training.optimizer import make_optimizer
from aqaa_jax.training.state import init_state
from aqaa_jax.training.step import make_train_step, step_of, total_loss

OPTIMIZER = OptimizerConfig(peak_lr=1e-2, warmup_steps=3)


@dataclass(frozen=True)
class Fit:
    """Fit a line; ``stop_at`` sends SIGTERM while that batch is made, ``poison`` makes its loss infinite."""

    stop_at: int = -1
    poison: int = -1
    name: str = "fit"
    weights: dict = field(default_factory=lambda: {"error": 1.0})

    def init(self, key):
        return Linear(4, 2, (EMBED, MLP), rngs=nnx.Rngs(key))

    def batch(self, step):
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        rng = np.random.default_rng(step)
        x = rng.normal(size=(8, 4)).astype(np.float32)
        return {"x": x, "y": x[:, :2] * (np.inf if step == self.poison else 3.0)}

    def loss(self, model, batch, key):
        noise = 0.01 * jax.random.normal(key, batch["y"].shape)
        error = jnp.square(model(batch["x"]) + noise - batch["y"])
        return {"error": (jnp.sum(error), jnp.asarray(error.size, jnp.float32))}

    def adjust(self, state, step):
        return state

    def evaluate(self, model):
        return {}


def run(path, loop, stage=None):
    return train(stage or Fit(), path, loop, OPTIMIZER, log=lambda text: None)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resumed_equals_uninterrupted(tmp_path, ema):
    loop = LoopConfig(steps=12, save_every=4, log_every=4, ema_decay=ema)
    whole = run(tmp_path / "whole", loop)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "parts", loop, Fit(stop_at=6))
    assert stopped.value.code == 143
    again = run(tmp_path / "parts", loop)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 12


def test_it_learns(tmp_path):
    run(tmp_path, LoopConfig(steps=40, save_every=40, log_every=10))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.7 * losses[0]


def test_a_step_that_is_not_finite_changes_nothing():
    stage, optimizer = Fit(poison=0), make_optimizer(OPTIMIZER, 10)
    state = init_state(stage.init(jax.random.key(0)), optimizer, ema=False)
    before = jax.tree.map(np.array, state.model)
    state, metrics = make_train_step(stage.loss, stage.weights, optimizer)(state, stage.batch(0), jax.random.key(0))
    assert metrics["skipped"] == 1.0 and int(state.step) == 1
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_terms_are_weighted_means_and_an_empty_one_has_none():
    terms = {"a": (jnp.array(6.0), jnp.array(3.0)), "b": (jnp.array(5.0), jnp.array(0.0))}
    loss, means = total_loss(terms, {"a": 2.0})
    assert float(loss) == 4.0 and float(means["a"]) == 2.0 and np.isnan(means["b"])
    with pytest.raises(ValueError, match="name no term"):
        total_loss(terms, {"c": 1.0})


def test_a_planned_executable_runs_in_place_of_the_step(tmp_path):
    loop = LoopConfig(steps=5, sharding=ShardingConfig(MeshConfig(data=2), "data"))
    expected = run(tmp_path / "compiled here", loop)
    mesh, table = make_mesh(loop.sharding.mesh), rules_of(loop.sharding)
    stage, optimizer = Fit(), make_optimizer(OPTIMIZER, loop.steps)
    state = init_state(stage.init(jax.random.key(0)), optimizer, ema=False)
    places = partition.state_shardings(state, state.model, mesh, table)
    with partition.partitioning(mesh, table):
        batch = partition.place_rows(stage.batch(0), mesh, table)
        step = step_of(stage, loop, optimizer, places)
        compiled = step.lower(jax.device_put(state, places), batch, jax.random.key(0)).compile()
    executable.save(tmp_path / "step.aot", compiled, {"flags": {}, "devices": ["cpu", 2]})
    loop = replace(loop, executable=str(tmp_path / "step.aot"))
    describe = lambda flags, devices: {"flags": flags, "devices": list(devices)}  # noqa: E731
    loaded = train(Fit(), tmp_path / "loaded", loop, OPTIMIZER, log=lambda text: None, describe=describe)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="made of another devices"):
        other = lambda flags, devices: {"flags": flags, "devices": ["cpu", 4]}  # noqa: E731
        train(Fit(), tmp_path / "refused", loop, OPTIMIZER, log=lambda text: None, describe=other)
    with pytest.raises(ValueError, match="stage 'fit' runs no executable"):
        run(tmp_path / "unknown", loop)
