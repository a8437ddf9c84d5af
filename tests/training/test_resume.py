"""A run goes on from the newest sound checkpoint: on another mesh, with another dtype, from before guards were."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from test_loop import OPTIMIZER, Fit, run
from test_train_sharded import Next
from test_train_sharded import run as run_on

from aqaa_jax.checkpoint.integrity import FILES
from aqaa_jax.checkpoint.store import Saved, Store
from aqaa_jax.training.config import LoopConfig
from aqaa_jax.training.loop import train
from aqaa_jax.training.optimizer import make_optimizer
from aqaa_jax.training.state import init_state

LOOP = LoopConfig(steps=12, save_every=4, log_every=2)


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def rows(path):
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in found]


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path):
    whole = run(tmp_path / "whole", LOOP)
    run(tmp_path / "cut", LOOP)
    folder = tmp_path / "cut" / "checkpoints" / "12"
    file = max((f for f in folder.rglob("*") if f.is_file() and f.name != FILES), key=lambda f: f.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    said = []
    again = train(Fit(), tmp_path / "cut", LOOP, OPTIMIZER, log=said.append)
    assert f"WARNING: checkpoint {folder} is damaged" in said[0] and "moved to" in said[0]
    assert "resuming from step 8" in said[1]
    assert (tmp_path / "cut" / "checkpoints-damaged" / "12" / "default").is_dir() and folder.is_dir()
    same(whole, again)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")  # none twice


def test_a_checkpoint_of_another_model_is_an_error_and_no_damage(tmp_path):
    run(tmp_path, LOOP)

    class Wider(Fit):
        def init(self, key):
            return type(super().init(key))(4, 3, ("embed", "mlp"), rngs=nnx.Rngs(key))

    with pytest.raises(ValueError, match="shape"):
        train(Wider(), tmp_path, dataclasses.replace(LOOP, steps=14), OPTIMIZER, log=lambda text: None)
    assert (tmp_path / "checkpoints" / "12").is_dir()


def test_a_checkpoint_from_before_there_were_guards(tmp_path):
    whole = run(tmp_path / "whole", LOOP)
    optimizer = make_optimizer(OPTIMIZER, LOOP.steps)
    like = jax.eval_shape(lambda: init_state(Fit().init(jax.random.key(0)), optimizer, ema=False))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), like)
    run(tmp_path / "short", dataclasses.replace(LOOP, steps=12, keep=3))
    store = Store(tmp_path / "short" / "checkpoints")
    state = store.restore(8, like)
    store.close()
    old = Store(tmp_path / "old" / "checkpoints")
    old.save(8, state._replace(guard=None))
    old.close()
    same(whole, run(tmp_path / "old", LOOP))


@pytest.mark.long
def test_the_guard_counts_on_another_mesh(tmp_path):
    """Everything of the state, the guard too, is read in the pieces of the new mesh; only rounding differs."""
    _, expected = run_on(tmp_path / "one")
    with pytest.raises(SystemExit):
        run_on(tmp_path / "two", "fsdp=4,tensor=2", "fsdp_tensor", Next(stop_at=2))
    model, losses = run_on(tmp_path / "two", "data=2,fsdp=2", "fsdp")
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    weights = Saved(tmp_path / "two" / "checkpoints").into(jax.tree.map(lambda x: x.astype("bfloat16"), model))
    for a, b in zip(jax.tree.leaves(weights), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b.astype("bfloat16"))
