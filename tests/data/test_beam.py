"""The Beam pipeline makes the shards that processes make (extra ``beam``)."""

import json
import sys

import pytest
from test_tokenizing import contents, corpus, job  # noqa: F401  (corpus is a fixture)

from aqaa_jax.data import beam, tokenizing


def test_a_pipeline_makes_the_same_shards_and_goes_on_where_another_stopped(corpus, tmp_path):  # noqa: F811
    pytest.importorskip("apache_beam")
    tokenizing.tokenize(job(corpus, tmp_path / "here"))
    piped = job(corpus, tmp_path / "beam")
    tokenizing.sharded.begin(piped)
    tokenizing.sharded.make(piped, 1)
    made = (tmp_path / "beam" / piped.path(1).name).stat().st_mtime_ns
    report = tokenizing.finish(piped, beam.run(piped, ["--runner=DirectRunner"]))
    assert report == json.loads((tmp_path / "here" / "report.json").read_text())
    assert contents(tmp_path / "beam") == contents(tmp_path / "here")
    assert (tmp_path / "beam" / piped.path(1).name).stat().st_mtime_ns == made


def test_without_beam_it_says_what_to_install(corpus, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match=r"pip install 'aqaa_jax\[beam\]'"):
        beam.run(job(corpus, tmp_path / "out"), [])
