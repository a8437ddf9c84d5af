"""Import never holds a model: the issue's bound on a decoder of a gigabyte, through the command, killed once."""

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

from aqaa_jax.checkpoint.shards import ShardReader, write_shards
from aqaa_jax.config import DecoderConfig, SystemConfig, VocabConfig, to_dict
from aqaa_jax.convert import step1

CONFIG = DecoderConfig(vocab=8192, embed=2048, mlp=6144, heads=16, kv_heads=4, head_dim=128, layers=10)


def write_source(directory):
    plan = {n: jax.ShapeDtypeStruct(s, jnp.bfloat16) for n, s in step1.published_shapes(CONFIG).items()}
    rng = np.random.default_rng(0)

    def read(name):
        noise = rng.integers(0, 1 << 15, plan[name].shape, np.uint16)  # below infinity in bfloat16
        return [(noise & 0x3FFF).view(jnp.bfloat16)]

    write_shards(directory, plan, read, max_bytes=300_000_000)
    fields = {theirs: getattr(CONFIG, ours) for theirs, ours in step1._FIELDS.items()}
    (directory / "config.json").write_text(json.dumps(fields | {"torch_dtype": "bfloat16"}))
    return sum(np.prod(t.shape) * 2 for t in plan.values()), max(np.prod(t.shape) * 2 for t in plan.values())


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
    peak = float(re.search(r"peak resident memory ([\d.]+) GB", done.stderr).group(1)) * 1e9
    print(f"peak {peak / 1e9:.2f} GB, bound {(3 * largest + 1e9) / 1e9:.2f} GB, model {total / 1e9:.2f} GB")
    assert peak < 3 * largest + 1e9
    source, ours = ShardReader(tmp_path / "in"), ShardReader(tmp_path / "out", "decoder")
    for entry in step1.layout.per_layer(step1.entries(CONFIG)):
        wanted = step1.layout.to_ours(source.read(entry.published), entry)
        assert np.array_equal(ours.read(entry.ours).view(np.uint16), wanted.view(np.uint16)), entry.ours
