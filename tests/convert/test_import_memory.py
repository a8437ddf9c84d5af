"""Import and export never hold a model: less than three times the largest tensor and a gigabyte, by the commands."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aqaa_jax.checkpoint.folder import TEXT_MODEL
from aqaa_jax.checkpoint.shards import ShardReader, write_shards
from aqaa_jax.config import DecoderConfig, SystemConfig, VocabConfig, to_dict
from aqaa_jax.convert import step1
from aqaa_jax.tokens.text import train_pocket
from aqaa_jax.tokens.vocab import Vocab

CONFIG = DecoderConfig(vocab=8192, embed=2048, mlp=6144, heads=16, kv_heads=4, head_dim=128, layers=10)


def write_source(directory, config=CONFIG, max_bytes=300_000_000):
    plan = {n: jax.ShapeDtypeStruct(s, jnp.bfloat16) for n, s in step1.published_shapes(config).items()}
    rng = np.random.default_rng(0)

    def read(name):
        noise = rng.integers(0, 1 << 15, plan[name].shape, np.uint16)  # below infinity in bfloat16
        return [(noise & 0x3FFF).view(jnp.bfloat16)]

    write_shards(directory, plan, read, max_bytes=max_bytes)
    fields = {theirs: getattr(config, ours) for theirs, ours in step1._FIELDS.items()}
    (directory / "config.json").write_text(json.dumps(fields | {"torch_dtype": "bfloat16"}))
    return sum(np.prod(t.shape) * 2 for t in plan.values()), max(np.prod(t.shape) * 2 for t in plan.values())


def peak_of(done):
    return float(re.search(r"peak resident memory ([\d.]+) GB", done.stderr).group(1)) * 1e9


@pytest.mark.long
def test_memory_stays_under_three_times_the_largest_tensor_and_a_gigabyte(tmp_path):
    total, largest = write_source(tmp_path / "in")
    assert total > 0.9e9
    base = SystemConfig(decoder=CONFIG, vocab=VocabConfig(size=8192, audio_start=4000, linguistic=1000, semantic=1000))
    config = tmp_path / "config.py"
    config.write_text(
        f"import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({to_dict(base)!r})\n"
    )
    command = [sys.executable, "-m", "aqaa_jax.cli.main", "import", tmp_path / "in", tmp_path / "out"]
    command += ["--config", config, "--shard-gb", "0.1", "--verify"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "out").glob("decoder-*"))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("decoder-*.safetensors")}
    assert not (tmp_path / "out" / "decoder.safetensors.index.json").exists()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert all(p.stat().st_mtime_ns == when for p, when in first.items())  # kept
    peak = peak_of(done)
    print(f"peak {peak / 1e9:.2f} GB, bound {(3 * largest + 1e9) / 1e9:.2f} GB, model {total / 1e9:.2f} GB")
    assert peak < 3 * largest + 1e9
    source, ours = ShardReader(tmp_path / "in"), ShardReader(tmp_path / "out", "decoder")
    for entry in step1.layout.per_layer(step1.entries(CONFIG)):
        wanted = step1.layout.to_ours(source.read(entry.published), entry)
        assert np.array_equal(ours.read(entry.ours).view(np.uint16), wanted.view(np.uint16)), entry.ours


@pytest.mark.long
def test_the_3b_decoder_at_full_size_there_and_back(tmp_path):
    """Random weights in the names and shapes of Step-Audio-TTS-3B, 7 GB: what comes back is what went in."""
    config = DecoderConfig(embed=3072, mlp=8192, heads=48, kv_heads=4, head_dim=64, layers=32)
    total, largest = write_source(tmp_path / "in", config, max_bytes=2 * 10**9)
    assert 7.0e9 < total < 7.1e9
    texts = ["what is two plus three", "three is more than two"]
    train_pocket(texts, tmp_path / "in" / TEXT_MODEL, Vocab(VocabConfig()), size=345)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for command in ("import in ours", "export ours back"):
        name, source, target = command.split()
        arguments = [name, tmp_path / source, tmp_path / target, "--verify"]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "aqaa_jax.cli.main", *arguments], env=env, capture_output=True, text=True, check=True
        )
        peak, seconds = peak_of(done), time.monotonic() - began
        print(f"{name} of {total / 1e9:.2f} GB: peak {peak / 1e9:.2f} GB, {seconds:.0f} s with --verify")
        assert peak < 3 * largest + 1e9
    before, after = ShardReader(tmp_path / "in"), ShardReader(tmp_path / "back")
    assert list(before.shapes) == list(after.shapes)
    for name in before.shapes:
        assert np.array_equal(before.read(name).view(np.uint16), after.read(name).view(np.uint16)), name
