"""Test settings: CPU with 8 virtual devices, strict dtypes, and the folder of reference data."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import numpy as np
import pytest

import aqaa_jax  # noqa: F401  (sets Flax to tree mode)

jax.config.update("jax_numpy_rank_promotion", "allow")
GOLDEN = Path(os.environ.get("AQAA_GOLDEN", Path(__file__).parent / "golden"))


@pytest.fixture(scope="session")
def golden():
    """``golden("folder/file.npz")`` -> dict of arrays; a path for any other file."""

    def read(name: str):
        path = GOLDEN / name
        if path.suffix == ".npz":
            with np.load(path) as data:
                return {k: data[k] for k in data.files}
        return path

    return read
