"""Weights on disk: exact round trip, and errors that name file and tensor."""

import jax
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.files import load_model, read_file, save_file, save_model
from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.nn.linear import Linear


def build():
    return Linear(3, 4, ("embed", "mlp"), rngs=nnx.Rngs(0))


def test_round_trip_is_exact(tmp_path):
    model = build()
    save_model(tmp_path / "m.safetensors", model)
    again = load_model(tmp_path / "m.safetensors", jax.eval_shape(build))
    for name, value in named_weights(model).items():
        np.testing.assert_array_equal(value, named_weights(again)[name])
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_tables_are_stored_as_int8_rows(tmp_path):
    model, path = build(), tmp_path / "m.safetensors"
    save_model(path, model, dtype=np.float16, tables=["kernel"])
    stored = read_file(path)
    assert stored["kernel"].dtype == np.int8 and stored["kernel.scale"].shape == (3, 1)
    kernel = np.asarray(model.kernel[...])
    again = load_model(path, jax.eval_shape(build)).kernel[...]
    assert again.dtype == np.float32
    assert np.all(np.abs(again - kernel) <= np.abs(kernel).max(axis=-1, keepdims=True) / 253)
    save_file(path, {**stored, "kernel.scale": stored["kernel.scale"][:1]})
    with pytest.raises(ValueError, match=r"'kernel.scale' has shape \(1, 1\), expected \(3, 1\)"):
        load_model(path, jax.eval_shape(build))
    save_file(path, {name: value for name, value in stored.items() if name != "kernel.scale"})
    with pytest.raises(ValueError, match=r"int8 tensor 'kernel' has no 'kernel.scale'"):
        load_model(path, jax.eval_shape(build))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("bias"), r"m.safetensors: tensor 'bias' is missing"),
        (lambda w: w.update(extra=w["bias"]), r"m.safetensors: unexpected tensor 'extra'"),
        (
            lambda w: w.update(kernel=w["kernel"].T),
            r"m.safetensors: tensor 'kernel' has shape \(4, 3\), expected \(3, 4\)",
        ),
    ],
)
def test_wrong_tensors_are_named(tmp_path, change, message):
    weights = dict(named_weights(build()))
    change(weights)
    save_file(tmp_path / "m.safetensors", weights)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "m.safetensors", jax.eval_shape(build))


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.safetensors: no such weights file"):
        read_file(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, this is not a tensor")
    with pytest.raises(ValueError, match=r"text.safetensors: not a readable safetensors file"):
        read_file(tmp_path / "text.safetensors")
    save_file(tmp_path / "cut.safetensors", named_weights(build()))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"cut.safetensors: not a readable safetensors file"):
        read_file(tmp_path / "cut.safetensors")
