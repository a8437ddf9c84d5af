"""The repetition rule against the published logits processor."""

import numpy as np
import pytest

from aqaa_jax.inference.sampling import NO_TOKEN, forbid_repetition

pytestmark = pytest.mark.parity
WINDOW, THRESHOLD = 10, 0.1  # of the README


def test_repetition_rule(golden):
    data = golden("interleave/repetition_processor.npz")
    ids, scores = data["input_ids"], data["scores"]
    ours = forbid_repetition(scores, ids[:, -WINDOW:], THRESHOLD)
    np.testing.assert_array_equal(ours, data["out"])
    short = ids[:, -(WINDOW - 1) :]
    filled = np.pad(short, ((0, 0), (1, 0)), constant_values=NO_TOKEN)
    np.testing.assert_array_equal(forbid_repetition(scores, filled, THRESHOLD), data["out_short_history"])
