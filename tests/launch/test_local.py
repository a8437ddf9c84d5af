"""`aqaa train` really run in several processes through the launcher: the smoke-size decoder on made-up speech."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.files import save_model
from aqaa_jax.config import from_dict
from aqaa_jax.data.tasks import save_audio
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.tokens.interleave import weave_audio
from aqaa_jax.tokens.text import train_pocket
from aqaa_jax.tokens.vocab import Vocab
from aqaa_jax.training import corpus
from aqaa_jax.training.config import RecipeConfig

ROOT = Path(__file__).parents[2]
# One task whose examples are all of one length: one shape, compiled once.
CONFIG = f"""
import sys
sys.path.insert(0, {str(ROOT / "configs")!r})
import pocket

def get_config(arg=""):
    config = pocket.get_config("smoke")
    config.stages = ("sft1",)
    config.sft1_mix = {{"continuation": 1.0, **dict.fromkeys(("asr", "tts", "aqta", "aqtaa", "tqtaa"), 0.0)}}
    config.sft1.tokens = 512
    config.sft1.loop.log_every = 1
    return config
"""
SHARDING = "--config.sft1.loop.sharding."


def recipe() -> RecipeConfig:
    spec = importlib.util.spec_from_file_location("pocket", ROOT / "configs" / "pocket.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_dict(RecipeConfig, module.get_config("smoke").to_dict())


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run directory as the stages before sft1 leave it; the tokenizers' codes are random numbers."""
    run, rng, config = tmp_path_factory.mktemp("begun"), np.random.default_rng(0), recipe()
    vocab, texts = Vocab(config.system.vocab), ["human", "assistant", "system", "seven plus two is nine"]
    train_pocket(texts * 50, run / "corpus" / corpus.TEXT_MODEL, vocab, size=350)
    for name in corpus.SPOKEN:
        count = len(corpus.items(config, name))
        codes = zip(rng.integers(0, 1024, (count, 10)), rng.integers(0, 4096, (count, 15)), strict=True)
        save_audio(run / "tokenize" / f"{name}.npz", [weave_audio(*both, vocab) for both in codes])
    save_model(run / "pretrain" / "decoder.safetensors", Decoder(config.system.decoder, rngs=nnx.Rngs(0)), metadata={})
    (run / "config.py").write_text(CONFIG)
    return run


def launch(begun, run, processes, devices, *arguments):
    """The launcher, started in a run directory that begins like ``begun``."""
    run.mkdir()
    for folder in begun.iterdir():
        os.symlink(folder, run / folder.name)
    options = [f"--run-dir={run}", f"--processes={processes}", f"--devices={devices}", f"--python={sys.executable}"]
    options += [f"--config={run / 'config.py'}", "--name=t", "--allow-dirty", "--retry-seconds=0"]
    command = ["bash", str(ROOT / "launch/tpu_run.sh"), "--backend=local", *options, "--", *arguments]
    with (run / "said").open("w") as said:
        return subprocess.Popen(command, cwd=run, stdout=said, stderr=subprocess.STDOUT)


def metrics(run):
    path = run / "sft1" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.long
def test_any_number_of_processes_is_the_same_run(begun, tmp_path):
    mesh = [f"{SHARDING}strategy=fsdp", f"{SHARDING}mesh.data=2", f"{SHARDING}mesh.fsdp=4"]
    found = {}
    for processes, devices in ((1, 8), (2, 4), (4, 2)):
        run = tmp_path / str(processes)
        job = launch(begun, run, processes, devices, "--config.sft1.loop.steps=5", *mesh)
        code, said = job.wait(timeout=900), (run / "said").read_text()
        assert code == 0, said
        assert "preflight ok   all-reduce" in said and said.count("[sft1] 5/5") == 1 and said.count("[sft1] done") == 1
        others = [(run / f"launch/logs/process-{i}.log").read_text() for i in range(1, processes)]
        assert not any("[sft1]" in text for text in others)
        assert (run / "sft1" / "decoder.safetensors").is_file() and (run / "sft1" / "done.json").is_file()
        assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5]
        found[processes] = [line["loss"] for line in metrics(run)]
    for processes in (2, 4):
        np.testing.assert_allclose(found[processes], found[1], rtol=2e-6)
    assert found[1][-1] < found[1][0]


def process(number, run):
    """The id of a training process of ``run``."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, variables = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        ours = f"--run_dir={run}\0".encode() in command and f"AQAA_DISTRIBUTED={number}/".encode() in variables
        if ours and b"python" in command.split(b"\0")[0]:
            return int(folder.name)
    raise AssertionError(f"process {number} does not run: {(run / 'said').read_text()}")


def wait_for(run, job, wanted, seconds=300):
    end = time.monotonic() + seconds
    while not wanted():
        assert job.poll() is None and time.monotonic() < end, (run / "said").read_text()
        time.sleep(0.1)


@pytest.mark.long
def test_one_process_stopped_or_killed_ends_all_and_the_run_goes_on(begun, tmp_path):
    run = tmp_path / "run"
    arguments = ["--config.sft1.loop.steps=100000", "--config.sft1.loop.save_every=100000", f"{SHARDING}mesh.data=2"]
    job = launch(begun, run, 2, 1, *arguments)
    try:
        wait_for(run, job, lambda: len(metrics(run)) > 3)
        os.kill(process(1, run), signal.SIGTERM)
        wait_for(run, job, lambda: "resuming from step" in (run / "said").read_text())
        said = (run / "said").read_text()
        saved = int(said.split("stopped by SIGTERM, saved at step ")[1].split()[0])
        assert f"resuming from step {saved}\n" in said and "a process was told to stop; going on" in said
        wait_for(run, job, lambda: metrics(run)[-1]["step"] > saved + 3)
        unsaved = {line["step"]: line["loss"] for line in metrics(run)}[saved + 2]
        os.kill(process(1, run), signal.SIGKILL)
        wait_for(run, job, lambda: (run / "said").read_text().count("resuming from step") == 2)
        said = (run / "said").read_text()
        assert "process 1 ended with code 137" in said
        assert "failures without progress: 1 of 3" in said
        wait_for(run, job, lambda: metrics(run)[-1]["step"] >= saved + 2)
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=120) == 143
    finally:
        if job.poll() is None:  # killed, it would leave its processes running
            job.terminate()
            job.wait(timeout=120)
    last = (run / "said").read_text()
    assert last.count("stopped by SIGTERM, saved at step") == 2 and "the same command goes on" in last
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert lines[saved + 1]["loss"] == unsaved
