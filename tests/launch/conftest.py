"""A cloud of stand-ins for the tests of the launcher."""

import shutil

import pytest
from pretend_cloud import Cloud, repository


@pytest.fixture(scope="session")
def launcher(tmp_path_factory):
    """A clean repository with the launcher."""
    if not (shutil.which("git") and shutil.which("bash")):
        pytest.skip("needs git and bash")
    return repository(tmp_path_factory.mktemp("launcher"))


@pytest.fixture
def cloud(tmp_path, launcher):
    return Cloud(tmp_path, launcher)
