"""A training checkpoint as safetensors: the right step, the right weights, nothing taken for whole too early."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.files import load_model
from aqaa_jax.checkpoint.store import Saved, Store
from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import DecoderConfig
from aqaa_jax.convert import export_checkpoint
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.training.config import OptimizerConfig
from aqaa_jax.training.optimizer import make_optimizer
from aqaa_jax.training.state import init_state

CONFIG = DecoderConfig(vocab=20, embed=8, mlp=6, heads=4, kv_heads=2, head_dim=2, layers=3, param_dtype="float32")


def state(step, ema):
    optimizer = make_optimizer(OptimizerConfig(), 10)
    made = init_state(Decoder(CONFIG, rngs=nnx.Rngs(step)), optimizer, ema=ema)
    average = None if made.ema is None else jax.tree.map(lambda x: x + 1, made.ema)
    return made._replace(step=jnp.int32(step), ema=average)


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A stage's folder with steps 3 and 7, averaged; and one without an average."""
    directory = tmp_path_factory.mktemp("stage")
    store = Store(directory / "checkpoints")
    for step in (3, 7):
        store.save(step, state(step, ema=True))
    store.close()
    store = Store(directory / "plain" / "checkpoints")
    store.save(5, state(5, ema=False))
    store.close()
    return directory


def loaded(path):
    abstract = jax.eval_shape(lambda: Decoder(CONFIG, rngs=nnx.Rngs(0)))
    return named_weights(load_model(path, abstract))


def same(found, model):
    expected = named_weights(model)
    assert set(found) == set(expected)
    return all(np.array_equal(found[name], value) for name, value in expected.items())


def test_newest_average_comes_back(stage, tmp_path):
    export_checkpoint.run(stage, tmp_path / "x", check=True, say=lambda text: None)
    found = loaded(tmp_path / "x" / "model.safetensors")
    assert same(found, state(7, True).ema) and not same(found, state(7, True).model)
    record = json.loads((tmp_path / "x" / "checkpoint.json").read_text())
    assert record["step"] == 7 and record["weights"] == "averaged model"


def test_chosen_step_and_run_without_average(stage, tmp_path):
    export_checkpoint.run(stage / "checkpoints", tmp_path / "x", step=3, say=lambda text: None)
    assert same(loaded(tmp_path / "x" / "model.safetensors"), state(3, True).ema)
    export_checkpoint.run(stage / "plain", tmp_path / "y", say=lambda text: None)
    assert same(loaded(tmp_path / "y" / "model.safetensors"), state(5, False).model)
    assert json.loads((tmp_path / "y" / "checkpoint.json").read_text())["weights"] == "model"


def test_one_slice_at_a_time(stage):
    saved = Saved(stage / "checkpoints", 3)
    expected = named_weights(state(3, True).ema)
    assert {n: s.shape for n, s in saved.shapes.items()} == {n: w.shape for n, w in expected.items()}
    box = (slice(1, 3), *(slice(0, size) for size in expected["blocks.attention.wq"].shape[1:]))
    got = saved.read("blocks.attention.wq", box)
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, expected["blocks.attention.wq"][1:3])


def test_dtype_and_dry_run(stage, tmp_path):
    export_checkpoint.run(stage, tmp_path / "x", dtype="bfloat16", dry_run=True, say=lambda text: None)
    assert not (tmp_path / "x").exists()
    export_checkpoint.run(stage, tmp_path / "x", dtype="bfloat16", say=lambda text: None)
    expected = named_weights(state(7, True).ema)["head"].astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(loaded(tmp_path / "x" / "model.safetensors")["head"], expected)


def test_what_is_wrong_is_named(stage, tmp_path):
    assert export_checkpoint.is_checkpoint(stage) and export_checkpoint.is_checkpoint(stage / "checkpoints")
    assert not export_checkpoint.is_checkpoint(tmp_path) and not export_checkpoint.is_checkpoint(tmp_path / "none")
    with pytest.raises(ValueError, match="no step 4; it has 3, 7"):
        Saved(stage / "checkpoints", 4)
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match="not empty"):
        export_checkpoint.run(stage, tmp_path, say=lambda text: None)
    with pytest.raises(ValueError, match="int4"):
        export_checkpoint.run(stage, tmp_path / "x", dtype="int4", say=lambda text: None)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
