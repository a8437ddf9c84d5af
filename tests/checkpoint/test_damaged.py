"""Damaged checkpoints are found and set aside, what is kept is kept, and a step restores elsewhere."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint import integrity
from aqaa_jax.checkpoint.store import Saved, Store, set_damaged_aside
from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.nn.linear import Linear
from aqaa_jax.sharding.mesh import make_mesh, parse_mesh
from aqaa_jax.sharding.partition import shard
from aqaa_jax.sharding.rules import STRATEGIES
from aqaa_jax.training.state import TrainState

RULES = STRATEGIES["fsdp_tensor"]


def model(seed=0, dtype=jnp.float32):
    return Linear(64, 48, ("embed", "mlp"), rngs=nnx.Rngs(seed), dtype=dtype)


def saved_steps(path, *steps, figures=None, **options):
    store = Store(path, **options)
    for step in steps:
        store.save(step, {"model": model(step), "step": jnp.asarray(step)}, (figures or {}).get(step))
    store.close()


def largest(folder):
    files = [f for f in folder.rglob("*") if f.is_file() and f.name != integrity.FILES]
    return max(files, key=lambda f: f.stat().st_size)


def shorten(folder):
    file = next(f for f in folder.rglob("manifest.ocdbt"))
    file.write_bytes(file.read_bytes()[:-7])
    return f"{file.relative_to(folder)} has"


def remove(folder):
    largest(folder).unlink()
    return "is missing"


def flip(folder):
    file = largest(folder)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    return "has other bytes than were written"


def garble_metadata(folder):
    (folder / "_CHECKPOINT_METADATA").write_text('{"item')
    return "Unterminated string"


@pytest.mark.parametrize("harm", [shorten, remove, flip, garble_metadata])
def test_a_damaged_step_is_named_and_set_aside(tmp_path, harm):
    path = tmp_path / "checkpoints"
    saved_steps(path, 1, 2, 3, keep=3)
    reason = harm(path / "3")
    ((step, why, where),) = set_damaged_aside(path)
    assert step == 3 and reason in why and where == tmp_path / "checkpoints-damaged" / "3" and where.is_dir()
    assert not list(set_damaged_aside(path))
    store = Store(path)
    like = {"model": model(9), "step": jnp.zeros((), jnp.int32)}
    np.testing.assert_array_equal(store.restore(store.latest(), like)["model"].kernel[...], model(2).kernel[...])
    store.close()


def test_a_second_one_of_the_same_step_is_kept_beside_the_first(tmp_path):
    path = tmp_path / "checkpoints"
    for _ in range(2):
        saved_steps(path, 1)
        flip(path / "1")
        (found,) = set_damaged_aside(path)
    assert found[2].name == "1.1" and sorted(p.name for p in found[2].parent.iterdir()) == ["1", "1.1"]


@pytest.mark.parametrize("harm", [shorten, remove])
def test_a_step_that_does_not_say_what_it_holds_is_read_through(tmp_path, harm):
    saved_steps(tmp_path, 1, 2)
    for step in "12":
        (tmp_path / step / integrity.FILES).unlink()
    assert not list(set_damaged_aside(tmp_path))
    harm(tmp_path / "2")
    ((step, why, _),) = set_damaged_aside(tmp_path)
    assert step == 2 and "not a readable checkpoint" in why


def test_what_is_kept(tmp_path):
    figures = {s: {"loss": abs(s - 3.5)} for s in (3, 4, 12)}
    saved_steps(tmp_path, *range(1, 14), figures=figures, keep=2, period=2, every=8, best="loss")
    again = Store(tmp_path, keep=2, period=2, every=8, best="loss")
    assert again.steps() == [3, 8, 10, 12, 13]  # best of two equals, every 8th, two regular ones, the newest
    assert again.best() == 3 and again.figures(3) == {"loss": 0.5}
    again.close()
    most = Store(tmp_path, best="-loss")
    assert most.best() == 12
    most.close()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_alone_go_onto_another_mesh_with_another_dtype(tmp_path, dtype):
    mesh = make_mesh(parse_mesh("fsdp=4,tensor=2"))
    state = TrainState(jnp.ones((), jnp.int32), shard(model(1), mesh, RULES), {"mu": model(2)}, model(3))
    store = Store(tmp_path)
    store.save(7, state)
    store.close()
    like = shard(model(9, dtype), make_mesh(parse_mesh("fsdp=2")), RULES)
    got = Saved(tmp_path).into(like)
    for name, value in named_weights(got).items():
        expected = named_weights(like)[name]
        assert value.dtype == expected.dtype and value.sharding == expected.sharding
        np.testing.assert_array_equal(value, named_weights(model(3))[name].astype(value.dtype))
    with pytest.raises(ValueError, match="has shape"):
        Saved(tmp_path).into(Linear(64, 10, ("embed", "mlp"), rngs=nnx.Rngs(0)))


def test_leaves_that_a_step_lacks_come_from_elsewhere(tmp_path):
    saved_steps(tmp_path, 1)
    like = {"model": model(9), "step": jnp.zeros((), jnp.int32), "new": jnp.zeros(3)}
    store = Store(tmp_path)
    got = store.restore(1, like, {**like, "new": jnp.ones(3)})
    np.testing.assert_array_equal(got["new"], np.ones(3))
    np.testing.assert_array_equal(got["model"].kernel[...], model(1).kernel[...])
    with pytest.raises(ValueError, match="new"):
        store.restore(1, like)
    store.close()
