"""Config values and types: round trip, unknown keys, every config file."""

import importlib.util
import json
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from aqaa_jax.config import MeshConfig, ShardingConfig, SystemConfig, from_dict, to_dict
from aqaa_jax.training.config import RecipeConfig

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_round_trip_through_json():
    config = SystemConfig()
    assert from_dict(SystemConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    "values, message",
    [
        ({"decodr": {}}, "unknown config key 'decodr'"),
        ({"decoder": {"embd": 3}}, "unknown config key 'decoder.embd'"),
        ({"decoder": {"embed": "wide"}}, "'decoder.embed' is 'wide'; expected int"),
        ({"decoder": {"embed": True}}, "expected int"),
        ({"decoder": {"scan": 1}}, "expected bool"),
    ],
)
def test_a_bad_key_or_value_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(SystemConfig, values)


def test_sharding_by_name():
    values = {"mesh": {"fsdp": 4, "dcn_data": 2}, "strategy": "hsdp", "rules": {"mlp": ["tensor", "fsdp"]}}
    config = from_dict(ShardingConfig, values)
    assert config.mesh == MeshConfig(fsdp=4, dcn_data=2) and config.rules == {"mlp": ("tensor", "fsdp")}
    assert from_dict(ShardingConfig, json.loads(json.dumps(to_dict(config)))) == config
    with pytest.raises(ValueError, match=r"'rules.mlp' is 'tensor'; expected a list"):
        from_dict(ShardingConfig, {"rules": {"mlp": "tensor"}})
    with pytest.raises(ValueError, match=r"unknown config key 'mesh\.tnsor'"):
        from_dict(ShardingConfig, {"mesh": {"tnsor": 4}})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_file_builds_its_type(path):
    values = load(path).get_config().to_dict()
    kind = RecipeConfig if "system" in values else SystemConfig
    config = from_dict(kind, values)
    system = config.system if kind is RecipeConfig else config
    assert system.vocab.size == system.decoder.vocab >= system.vocab.audio_start + 5120
    assert system.vocoder.flow.vocab == system.vocab.linguistic + system.vocab.semantic == 5120


def test_the_sharding_of_a_stage_can_be_given_by_flag():
    values, argument = flags.FlagValues(), f"--config={CONFIGS[0].parent / 'pocket.py'}"
    argv = ["train", argument, "--config.sft1.loop.sharding.mesh.fsdp=8", "--config.sft1.loop.sharding.strategy=hsdp"]
    holder = config_flags.DEFINE_config_file("config", None, flag_values=values, lock_config=True, sys_argv=argv)
    values(argv)
    sharding = from_dict(RecipeConfig, holder.value.to_dict()).sft1.loop.sharding
    assert sharding == ShardingConfig(mesh=MeshConfig(fsdp=8), strategy="hsdp")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_an_unknown_variant_is_refused(path):
    with pytest.raises(ValueError, match="not known"):
        load(path).get_config("nonsense")
