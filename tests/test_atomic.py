"""A file appears whole or not at all."""

import pytest

from aqaa_jax import atomic


def test_written_replaces_at_the_end(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic.written(path) as part:
        part.write_text("whole")
        assert part.parent == path.parent and part.suffix == ".part" and not path.exists()
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError), atomic.written(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
