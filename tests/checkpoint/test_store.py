"""Saved steps read and written box by box, next to Orbax doing the same with whole arrays."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint import store
from aqaa_jax.checkpoint.average import Input, Mean, boxes
from aqaa_jax.checkpoint.slices import write_slices
from aqaa_jax.checkpoint.store import Saved, Store
from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import MeshConfig
from aqaa_jax.nn.linear import Linear
from aqaa_jax.sharding.mesh import make_mesh, parse_mesh
from aqaa_jax.sharding.partition import shard, shardings
from aqaa_jax.sharding.rules import STRATEGIES
from aqaa_jax.training.state import TrainState

RULES = STRATEGIES["fsdp_tensor"]


def build(seed=0):
    return Linear(8, 12, ("embed", "mlp"), rngs=nnx.Rngs(seed), dtype=jnp.bfloat16)


def save(directory, tree, step=3):
    stored = Store(directory)
    stored.save(step, tree)
    stored.close()


def same(saved, model):
    expected = named_weights(model)
    assert set(saved.shapes) == set(expected)
    for name, value in expected.items():
        got = np.empty(value.shape, value.dtype)
        for box in boxes(value.shape, 5, saved.chunks[name]):
            got[box] = saved.read(name, box)
        assert saved.shapes[name].dtype == value.dtype and got.tobytes() == np.asarray(value).tobytes(), name


def state(model, ema):
    return TrainState(jnp.zeros((), jnp.int32), model, {"mu": jax.tree.map(jnp.zeros_like, model)}, ema)


def test_a_module_and_a_training_state(tmp_path):
    save(tmp_path / "module", build())
    same(Saved(tmp_path / "module"), build())
    save(tmp_path / "plain", state(build(1), None))
    same(Saved(tmp_path / "plain" / "3"), build(1))
    save(tmp_path / "averaged", state(build(1), build(2)))
    same(Saved(tmp_path / "averaged"), build(2))


@pytest.mark.parametrize("sizes", ["fsdp=2,tensor=2", "data=2,fsdp=2,tensor=2", "fsdp=4"])
def test_saved_from_a_mesh(tmp_path, sizes):
    save(tmp_path, shard(build(), make_mesh(parse_mesh(sizes)), RULES))
    saved = Saved(tmp_path)
    mesh = parse_mesh(sizes)
    chunk = saved.chunks["kernel"]  # a shard, or less where Orbax lets replicas share the work
    assert chunk[0] <= 8 // mesh.fsdp and chunk[1] <= 12 // mesh.tensor
    same(saved, build())


def test_large_arrays_are_saved_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 1 << 20)
    big = {"x": jnp.arange(1 << 20, dtype=jnp.float32).reshape(1 << 10, 1 << 10)}
    save(tmp_path, big)
    saved = Saved(tmp_path)
    assert np.prod(saved.chunks["x"]) * 4 <= 1 << 20
    np.testing.assert_array_equal(saved.read("x", (slice(5, 9), slice(0, 1 << 10))), big["x"][5:9])
    again = Store(tmp_path)
    np.testing.assert_array_equal(again.restore(3, big)["x"], big["x"])
    again.close()


@pytest.mark.parametrize("limit", [5, 24, 10**6])
def test_written_slices_are_an_ordinary_checkpoint(tmp_path, limit):
    save(tmp_path / "in", shard(build(), make_mesh(MeshConfig(fsdp=2, tensor=2)), RULES))
    source, told = Saved(tmp_path / "in"), []
    mean = Mean([Input("in", 1, source)])
    write_slices(tmp_path / "out", mean, chunks=source.chunks, limit=limit, metadata={"a": [1]}, progress=told.append)
    assert sum(told) == sum(np.asarray(x).nbytes for x in named_weights(build()).values())
    written = Saved(tmp_path / "out")
    assert written.metadata == {"a": [1]}
    same(written, build())
    # Orbax restores it, on one device and onto a mesh, as it does what it has saved itself
    stored = Store(tmp_path / "out")
    assert stored.latest() == 0
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    for like in (build(9), shard(build(9), mesh, RULES)):
        restored = stored.restore(0, like)
        for (name, value), expected in zip(
            named_weights(restored).items(), named_weights(build()).values(), strict=True
        ):
            assert np.asarray(value).tobytes() == np.asarray(expected).tobytes(), name
            assert value.sharding == named_weights(like)[name].sharding
    stored.close()
    assert jax.tree.leaves(shardings(build(), mesh, RULES))  # the mesh was a real one


def test_a_chunk_of_the_input_is_finished_before_the_next(tmp_path):
    save(tmp_path / "in", shard(build(), make_mesh(MeshConfig(fsdp=2, tensor=2)), RULES))
    source, order = Saved(tmp_path / "in"), []

    class Watched:
        shapes = source.shapes

        def read(self, name, rows):
            chunk = tuple(s.start // c for s, c in zip(rows, source.chunks[name], strict=True))
            order.append((name, chunk))
            return source.read(name, rows)

    write_slices(tmp_path / "out", Watched(), chunks=source.chunks, limit=6)
    assert len(order) > len(set(order)) == len(list(itertools.groupby(order)))


def test_a_failed_write_leaves_nothing_and_an_interrupted_one_can_be_repeated(tmp_path):
    save(tmp_path / "in", build())
    source = Saved(tmp_path / "in")

    def fail(done):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        write_slices(tmp_path / "out", source, progress=fail)
    assert not (tmp_path / "out").exists()
    partial = tmp_path / "out" / "0.orbax-checkpoint-tmp"  # what a killed process leaves
    (partial / "default.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        Saved(tmp_path / "out")
    write_slices(tmp_path / "out", source)
    same(Saved(tmp_path / "out"), build())
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["0"]
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        write_slices(tmp_path / "out", source)


def test_the_newest_complete_step_counts(tmp_path):
    for step in (2, 10):
        save(tmp_path, build(step), step)
    (tmp_path / "11.orbax-checkpoint-tmp").mkdir()
    assert Saved(tmp_path).path.name == "10"
    same(Saved(tmp_path / "2"), build(2))


def test_missing_and_damaged_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none: no such checkpoint folder"):
        Saved(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: holds no complete checkpoint"):
        Saved(tmp_path / "empty")
    save(tmp_path / "cut", build())
    for file in (tmp_path / "cut" / "3" / "default").rglob("manifest.ocdbt"):
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cut/3: not a readable checkpoint"):
        Saved(tmp_path / "cut")
    save(tmp_path / "bare", build())
    (tmp_path / "bare" / "3" / "default" / "_METADATA").write_text("{")
    with pytest.raises(ValueError, match=r"bare/3: not a readable checkpoint"):
        Saved(tmp_path / "bare")
