"""Published HiFT names and shapes at full size, from abstract shapes only."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import HiftConfig
from aqaa_jax.convert.hift import fold_weight_norm, from_upstream, to_upstream
from aqaa_jax.vocoder.hift import Hift

KEYS = Path(__file__).parents[1] / "vocoder" / "data" / "hift_pt_keys_shapes.json"


@pytest.fixture(scope="module")
def published():
    return {name: tuple(shape) for name, shape in json.loads(KEYS.read_text()).items()}


@pytest.fixture(scope="module")
def ours():
    model = jax.eval_shape(lambda: Hift(HiftConfig(), rngs=nnx.Rngs(0)))
    return {name: tuple(w.shape) for name, w in named_weights(model).items()}


def blank(shapes):
    return {name: np.broadcast_to(np.float32(1), shape) for name, shape in shapes.items()}


def test_full_size_model_is_the_published_file(published, ours):
    got = to_upstream(blank(ours), HiftConfig())
    assert {name: w.shape for name, w in got.items()} == published
    assert len(published) == 227
    assert sum(w.size for w in got.values()) == 20_460_591


def test_published_file_is_the_full_size_model(published, ours):
    got = from_upstream(blank(published), HiftConfig())
    assert {name: w.shape for name, w in got.items()} == ours


def test_weight_norm_is_folded_over_all_axes_but_the_first():
    rng = np.random.default_rng(0)
    v, g = rng.standard_normal((3, 4, 5)).astype(np.float32), rng.standard_normal((3, 1, 1)).astype(np.float32)
    got = fold_weight_norm({"a.weight_v": v, "a.weight_g": g, "a.bias": g})
    assert set(got) == {"a.weight", "a.bias"}
    for i in range(3):
        np.testing.assert_allclose(got["a.weight"][i], g[i] * v[i] / np.linalg.norm(v[i]), rtol=1e-6)
    with pytest.raises(ValueError, match="weight_g"):
        fold_weight_norm({"a.weight_v": v})
