"""Sound to stored codes: every good recording once, every bad one listed, whatever is killed in between."""

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from aqaa_jax.data import sharded
from aqaa_jax.data.datasets import Dataset
from aqaa_jax.data.manifest import Manifest
from aqaa_jax.data.sharded import Summary
from aqaa_jax.data.tokenizing import TokenizeJob, batches, tokenize
from aqaa_jax.dsp import wav

RATE = 16000


@dataclass(frozen=True)
class Fake:
    """Codes that depend on the samples only; a waveform that is loud all through is refused."""

    calls: str = ""

    def __call__(self):
        def ears(wavs):
            out = []
            for w in wavs:
                if w.min() > 0.9:
                    raise ValueError("too loud")
                groups = len(w) // 1920
                rng = np.random.default_rng(int(hashlib.sha256(w.tobytes()).hexdigest()[:8], 16))
                out.append((rng.integers(0, 1024, 2 * groups + 1), rng.integers(0, 4096, 3 * groups + 2)))
            return out

        return ears


def tone(number, seconds=0.5):
    return (0.3 * np.sin(np.arange(int(seconds * RATE)) * (0.05 + 0.01 * number))).astype(np.float32)


@pytest.fixture
def corpus(tmp_path):
    """Ten lines, four of them bad: a missing file, no duration, too short, too loud for the tokenizer; one is text."""
    lines = []
    for n in range(10):
        wav.write(tmp_path / f"{n}.wav", tone(n, 0.3 + 0.1 * n), RATE)
        lines.append({"id": f"r{n}", "turns": [{"role": "human", "text": f"number {n}", "audio": f"{n}.wav"}]})
    lines[1]["turns"][0]["audio"] = "gone.wav"
    wav.write(tmp_path / "3.wav", np.zeros(0, np.float32), RATE)
    wav.write(tmp_path / "4.wav", tone(4, 0.05), RATE)
    wav.write(tmp_path / "6.wav", np.full(RATE, 0.99, np.float32), RATE)
    del lines[8]["turns"][0]["audio"]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return Manifest(tmp_path / "m.jsonl")


def job(corpus, folder, **changes):
    return TokenizeJob(**{"folder": folder, "source": corpus, "ears": Fake(), "model": "m", "per_shard": 3, **changes})


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("codes-*")}


def test_good_ones_are_kept_and_bad_ones_are_counted_and_listed(corpus, tmp_path):
    report = tokenize(job(corpus, tmp_path / "out"))
    assert (report["records"], report["done"], report["skipped"]) == (10, 6, 4)
    whys = {problem["where"]: problem["why"] for problem in report["problems"]}
    assert whys.keys() == {"record 1", "record 3", "record 4", "record 6"}
    assert "gone.wav: no such file" in whys["record 1"] and "m.jsonl:2" in whys["record 1"]
    assert "no audio samples" in whys["record 3"] and "too loud" in whys["record 6"]
    assert "0.050 s of audio gives no whole group" in whys["record 4"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    data = Dataset(tmp_path / "out")
    assert [data[i].id for i in range(len(data))] == ["r0", "r2", "r5", "r7", "r8", "r9"]
    ears = Fake()()
    for index in (0, 3, 5):
        part = data[index].turns[0].parts[0]
        number = int(data[index].id[1:])
        sound, _ = wav.read(tmp_path / f"{number}.wav")
        expected = ears([sound])[0]
        assert part.text == f"number {number}" and part.sound is None
        for one, other in zip(part.codes, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    assert data[4].turns[0].parts[0].codes is None


def test_strict_stops_at_a_bad_file(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"gone.wav: no such file"):
        tokenize(job(corpus, tmp_path / "out", strict=True))
    assert not (tmp_path / "out" / "dataset_info.json").exists()


def test_an_interrupted_run_goes_on_and_ends_the_same(corpus, tmp_path, monkeypatch):
    tokenize(job(corpus, tmp_path / "whole"))
    asked = []
    original = Manifest.__getitem__

    def stops(self, index):
        asked.append(index)
        if index == 7 and len(asked) < 9:
            raise KeyboardInterrupt
        return original(self, index)

    monkeypatch.setattr(Manifest, "__getitem__", stops)
    with pytest.raises(KeyboardInterrupt):
        tokenize(job(corpus, tmp_path / "cut"))
    with pytest.raises(FileNotFoundError, match="not a \\(whole\\) dataset"):
        Dataset(tmp_path / "cut")
    assert len(contents(tmp_path / "cut")) == 2
    lines = []
    report = tokenize(job(corpus, tmp_path / "cut"), say=lines.append)
    assert asked == [*range(8), 6, 7, 8, 9]  # the two finished shards are not read again
    assert report == json.loads((tmp_path / "whole" / "report.json").read_text())
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert "2 of 4 shards are done already" in lines[0] and "ETA" in lines[-1]
    with pytest.raises(ValueError, match="begun with model 'm', now 'other'"):
        tokenize(job(corpus, tmp_path / "cut", model="other"))


def test_several_processes_make_the_same_shards(corpus, tmp_path):
    tokenize(job(corpus, tmp_path / "one"))
    tokenize(job(corpus, tmp_path / "two"), processes=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_an_empty_shard_is_read_over_an_empty_dataset_is_an_error(corpus, tmp_path):
    lines = (tmp_path / "m.jsonl").read_text().splitlines()
    (tmp_path / "e.jsonl").write_text("\n".join([lines[0], lines[1], lines[3], lines[9]]))
    tokenize(job(Manifest(tmp_path / "e.jsonl"), tmp_path / "some", per_shard=1))
    data = Dataset(tmp_path / "some")
    assert [data[i].id for i in range(len(data))] == ["r0", "r9"]
    (tmp_path / "b.jsonl").write_text(lines[1])
    with pytest.raises(ValueError, match="none of 1 records could be tokenized"):
        tokenize(job(Manifest(tmp_path / "b.jsonl"), tmp_path / "none"))


def test_other_rates_are_resampled_and_a_tail_is_added(tmp_path):
    wav.write(tmp_path / "a.wav", tone(0, 1.0)[::2], RATE // 2)
    (tmp_path / "m.jsonl").write_text(json.dumps({"turns": [{"role": "human", "audio": "a.wav"}]}))
    tokenize(job(Manifest(tmp_path / "m.jsonl"), tmp_path / "out", tail=0.24))
    codes = Dataset(tmp_path / "out")[0].turns[0].parts[0].codes
    assert len(codes.linguistic) == 2 * (int(1.24 * RATE) // 1920) + 1


def test_batches_are_of_like_length_and_bounded():
    lengths = dict(enumerate([5, 100, 7, 90, 6, 300, 95]))
    groups = list(batches(lengths, 200))
    assert sorted(key for group in groups for key in group) == list(range(7))
    assert groups[0] == [5]  # longer than a batch: alone
    assert all(len(g) == 1 or max(lengths[k] for k in g) * len(g) <= 200 for g in groups)
    assert [1, 6] in groups and list(batches({}, 10)) == []


class Deadly:
    """A job whose second shard takes its process down."""

    title, unit, count = "deadly", "things", 3

    def __init__(self, folder):
        self.folder = folder

    def identity(self):
        return {}

    def __call__(self, shard):
        if shard == 1:
            os._exit(9)
        return Summary(1, 1, 1.0)


def test_a_dead_worker_is_one_line_that_says_how_to_go_on(tmp_path):
    with pytest.raises(OSError, match=r"deadly: a worker process died .* run again to go on"):
        sharded.run(Deadly(tmp_path), processes=2)


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
import test_tokenizing as t
from dataclasses import dataclass
from pathlib import Path
from aqaa_jax.data.manifest import Manifest
from aqaa_jax.data.tokenizing import tokenize

@dataclass(frozen=True)
class Slow(t.Fake):
    def __call__(self):
        ears = super().__call__()
        return lambda wavs: (time.sleep(0.2), ears(wavs))[1]

folder = Path({folder!r})
tokenize(t.job(Manifest(folder / "m.jsonl"), folder / "killed", ears=Slow(), per_shard=1))
"""


@pytest.mark.long
def test_runs_killed_at_any_moment_end_as_an_uninterrupted_one(corpus, tmp_path):
    report = tokenize(job(corpus, tmp_path / "whole", per_shard=1))
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    rng = np.random.default_rng(0)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
        before = len(list((tmp_path / "killed").glob("codes-*")))
        while process.poll() is None and len(list((tmp_path / "killed").glob("codes-*"))) <= before:
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.3)))
        process.kill()
        process.wait()
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert json.loads((tmp_path / "killed" / "report.json").read_text()) == report
