"""libtpu, which describes and compiles for TPUs that are not here."""

import importlib.util

import pytest


@pytest.fixture(scope="session")
def libtpu():
    """Skips without libtpu (extra ``plan``), which has no wheel for this system or was left out."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'aqaa_jax[plan]' (Linux only)")
