"""Published flow names and shapes at full size, from abstract shapes only."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import FlowConfig
from aqaa_jax.convert.flow import config_from_upstream, from_upstream, to_upstream
from aqaa_jax.vocoder.flow import Flow

KEYS = Path(__file__).parents[1] / "vocoder" / "data" / "flow_pt_keys_shapes.json"


@pytest.fixture(scope="module")
def published():
    return {name: tuple(shape) for name, shape in json.loads(KEYS.read_text()).items()}


@pytest.fixture(scope="module")
def ours():
    model = jax.eval_shape(lambda: Flow(FlowConfig(), rngs=nnx.Rngs(0)))
    return {name: tuple(w.shape) for name, w in named_weights(model).items()}


def blank(shapes):
    return {name: np.broadcast_to(np.int8(1), shape) for name, shape in shapes.items()}


def test_full_size_model_is_the_published_file(published, ours):
    got = to_upstream(blank(ours), FlowConfig())
    assert {name: w.shape for name, w in got.items()} == published
    assert len(published) == 1185


def test_published_file_is_the_full_size_model(published, ours):
    got = from_upstream(blank(published), FlowConfig())
    assert {name: w.shape for name, w in got.items()} == ours
    assert sum(w.size for w in got.values()) == 105_399_040


def test_missing_and_unknown_tensors_are_named(published):
    state = blank(published)
    without = {k: v for k, v in state.items() if k != "encoder_proj.bias"}
    with pytest.raises(ValueError, match=r"encoder_proj\.bias"):
        from_upstream(without, FlowConfig())
    with pytest.raises(ValueError, match="surplus"):
        from_upstream({**state, "surplus": np.zeros(1)}, FlowConfig())


def test_unknown_network_is_named(golden):
    values = json.loads(golden("flow_vocoder/config.json").read_text())
    values["encoder"]["macaron_style"] = True
    with pytest.raises(ValueError, match="macaron_style"):
        config_from_upstream(values)
