"""A saved step runs like the step; one made of anything else is refused by name."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from aqaa_jax.config import DecoderConfig, VocabConfig
from aqaa_jax.training import executable
from aqaa_jax.training.config import LoopConfig, StageConfig


@jax.jit
def step(state, batch):
    return {"sum": state["sum"] + batch.sum()}, batch.max()


def described(**changes):
    config = StageConfig(loop=LoopConfig(**changes))
    return executable.description("sft", DecoderConfig(layers=2), VocabConfig(), config, {"b": "1"}, ("cpu", 8))


ARGUMENTS = ({"sum": jnp.ones(())}, jnp.arange(4.0))


def test_saved_and_loaded(tmp_path):
    path = tmp_path / "runs" / "step.aot"
    key = executable.save(path, step.lower(*ARGUMENTS).compile(), described())
    assert key == executable.key_of(described())
    loaded = executable.load(path, described(), step, ARGUMENTS, jax.devices()[:1])
    state, highest = loaded(*ARGUMENTS)
    assert float(state["sum"]) == 7.0 and float(highest) == 3.0


def test_what_differs_is_named(tmp_path):
    path = tmp_path / "step.aot"
    executable.save(path, step.lower(*ARGUMENTS).compile(), described())
    with pytest.raises(ValueError, match=r"made of another config\.loop\.microbatches, config\.loop\.steps;"):
        executable.load(path, described(microbatches=2, steps=7), step, ARGUMENTS, jax.devices()[:1])
    other = described() | {"flags": {"b": "2"}}
    with pytest.raises(ValueError, match=r"another flags\.b;"):
        executable.load(path, other, step, ARGUMENTS, jax.devices()[:1])


def test_key_is_of_what_is_compiled_in():
    key = executable.key_of(described())
    assert executable.key_of(described(seed=5, log_every=1, save_every=9, keep=3)) == key
    assert executable.key_of(described(ema_decay=0.5)) != key
    decoder = DecoderConfig(layers=3)
    same = executable.description("sft", decoder, VocabConfig(), StageConfig(), {}, ("cpu", 8))
    again = executable.description("sft", dataclasses.replace(decoder), VocabConfig(), StageConfig(), {}, ("cpu", 8))
    assert executable.key_of(same) == executable.key_of(again) != key


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "step.aot"
    path.write_bytes(b"\x80\x04 not a plan\n")
    with pytest.raises(ValueError, match="not an executable"):
        executable.load(path, described(), step, ARGUMENTS, jax.devices()[:1])
