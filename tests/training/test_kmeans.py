"""k-means finds well separated clusters, is deterministic, and refuses too few rows."""

import numpy as np
import pytest

from aqaa_jax.training.kmeans import kmeans


def test_finds_clusters():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 4)) * 20
    x = np.concatenate([c + rng.normal(size=(80, 4)) for c in centres]).astype(np.float32)
    found, error = kmeans(x, 12, iterations=25, seed=1)
    nearest = np.min(np.linalg.norm(centres[:, None] - np.asarray(found)[None], axis=-1), axis=1)
    assert nearest.max() < 2.0 and error < 4.5
    np.testing.assert_array_equal(found, kmeans(x, 12, iterations=25, seed=1)[0])


def test_too_few_rows():
    with pytest.raises(ValueError, match="at least as many rows, got 3"):
        kmeans(np.zeros((3, 2), np.float32), 4)
