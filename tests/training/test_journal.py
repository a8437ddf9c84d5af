"""What a run writes: no step twice, figures of rate and time, TensorBoard's files, samples and the profiler's."""

import importlib.util
import itertools
import json
import shutil
import sys
import time

import numpy as np
import pytest
from test_loop import OPTIMIZER, Fit

from aqaa_jax.dsp import wav
from aqaa_jax.training.config import LoopConfig
from aqaa_jax.training.journal import Journal
from aqaa_jax.training.loop import train
from aqaa_jax.training.samples import Sound


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_rows_of_steps_that_are_done_again_and_a_broken_line_go(tmp_path):
    with Journal(tmp_path, 0) as journal:
        for step in (2, 4, 6):
            journal.row(step, loss=1.0 / step)
        began = journal.began
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    with Journal(tmp_path, 4) as journal:
        assert journal.last == {"step": 4, "loss": 0.25} and journal.began == began
        journal.row(6, loss=9.0)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(2, 0.5), (4, 0.25), (6, 9.0)]


def test_a_journal_without_a_writer_for_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"expected its writer: pip install 'aqaa_jax\[tensorboard\]'"):
        Journal(tmp_path, 0, tensorboard=True)


class Told(Fit):
    """Counts, evaluates and makes samples; batches take a moment."""

    counted = "error"

    def flops(self, batch):
        return 1e6

    def batch(self, step):
        time.sleep(0.05)
        return super().batch(step)

    def evaluate(self, model):
        return {"held_out": float(np.abs(np.asarray(model.kernel[...]) - 3 * np.eye(4, 2)).sum())}

    def samples(self, model):
        tone = np.sin(np.arange(1600) * 0.1).astype(np.float32)
        return {"tone": Sound(0.5 * tone, 16000), "kernel": np.asarray(model.kernel[...])}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    path, said = tmp_path_factory.mktemp("told"), []
    loop = LoopConfig(
        steps=40,
        save_every=20,
        log_every=5,
        evaluate_every=5,
        keep_best="-held_out",
        keep_every=15,
        sample_every=20,
        profile=(3, 6),
        tensorboard=importlib.util.find_spec("tensorboardX") is not None,
    )
    train(Told(), path, loop, OPTIMIZER, log=said.append)
    return path, said


def test_rate_wait_and_goodput(told):
    lines = [row for row in rows(told[0]) if "event" not in row]
    assert [row["step"] for row in lines] == list(range(5, 41, 5))
    last = lines[-1]
    assert last["tokens"] == 16 and "mfu" not in last  # a CPU has no known peak
    assert 0.1 < last["data_wait"] < 1 and last["tokens_per_s"] < 16 / 0.05
    assert 0 < last["goodput"] < 1 - last["data_wait"] / 8
    assert all(a["productive_s"] <= b["productive_s"] for a, b in itertools.pairwise(lines))


def test_the_best_step_is_kept_and_named(told):
    path, said = told
    figures = {row["step"]: row["held_out"] for row in rows(path) if row.get("event") == "evaluated"}
    assert set(figures) == set(range(5, 41, 5))
    best = json.loads((path / "best.json").read_text())
    assert best["step"] == max(figures, key=figures.get) == 5 and best["by"] == "-held_out"
    assert best["figures"] == {"held_out": figures[5]}
    kept = {int(p.name) for p in (path / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {5, 15, 20, 30, 40}
    assert any("best by -held_out: step 5" in text for text in said)


def test_samples_and_profile_are_written(told):
    folder = told[0] / "samples" / "20"
    tone, rate = wav.read(folder / "tone.wav")
    assert rate == 16000 and len(tone) == 1600 and (folder / "kernel.png").stat().st_size > 100
    assert list((told[0] / "profile").rglob("*.xplane.pb"))


def test_tensorboard_has_the_same_figures(told):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    (file,) = (told[0] / "tensorboard").glob("events*")
    data, at, losses, tags = file.read_bytes(), 0, {}, set()
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + size])
        at += 16 + size
        for value in event.summary.value:
            tags.add(value.tag)
            if value.tag == "loss":
                losses[event.step] = value.simple_value
    lines = [row for row in rows(told[0]) if "event" not in row]
    assert losses == pytest.approx({row["step"]: row["loss"] for row in lines}, rel=1e-6)
    assert {"held_out", "tone", "kernel"} <= tags


def test_a_figure_that_is_not_there_is_named(tmp_path):
    loop = LoopConfig(steps=2, evaluate_every=1, keep_best="accuracy")
    with pytest.raises(ValueError, match="keep_best 'accuracy' is no figure of the stage; it has held_out"):
        train(Told(), tmp_path, loop, OPTIMIZER, log=lambda text: None)
    shutil.rmtree(tmp_path)
    with pytest.raises(ValueError, match="keep_best is 'accuracy' and evaluate_every 0"):
        train(Told(), tmp_path, LoopConfig(steps=2, keep_best="accuracy"), OPTIMIZER, log=lambda text: None)
