"""Training with experts: the loss falls, biases follow the load, a resumed run is the run, meshes change nothing."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import DecoderConfig, ExpertsConfig, MeshConfig, ShardingConfig, VocabConfig
from aqaa_jax.plan.report import parameters
from aqaa_jax.training.config import LoopConfig, OptimizerConfig
from aqaa_jax.training.loop import train
from aqaa_jax.training.stages.language import LanguageStage

EXPERTS = ExpertsConfig(experts=4, top_k=2, mlp=16, shared_mlp=8, score="sigmoid", bias_rate=0.01)
DECODER = DecoderConfig(
    vocab=48,
    embed=16,
    heads=4,
    kv_heads=2,
    head_dim=4,
    layers=2,
    dtype="float32",
    param_dtype="float32",
    experts=EXPERTS,
)
OPTIMIZER = OptimizerConfig(peak_lr=5e-2, warmup_steps=2, weight_decay=0.1)
CONFIG = Path(__file__).parents[2] / "configs" / "aqaa_moe.py"


class Stage(LanguageStage):
    """The real stage on sequences that count up; ``broken`` fails at that step."""

    broken = -1

    def batch(self, step):
        if step == self.broken:
            raise RuntimeError("broken")
        start = np.random.default_rng(step).integers(0, 20, (8, 1))
        tokens = (start + np.arange(13)).astype(np.int32)
        ones = np.ones((8, 12), np.int32)
        source = np.tile(np.arange(12, dtype=np.int32), (8, 1))
        values = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segment_ids": ones, "source": source}
        return values | {"loss_mask": ones.astype(np.float32)}


def run(path, stage=Stage, decoder=DECODER, **changes):
    stage = stage("sft1", decoder, VocabConfig(48, 32, 8, 8), None)
    loop = LoopConfig(steps=8, log_every=2, save_every=4, **changes)
    model = train(stage, path, loop, OPTIMIZER, log=lambda text: None)
    return model, [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return run(tmp_path_factory.mktemp("straight"))


def test_loss_falls_and_figures_are_told(straight):
    _, lines = straight
    assert lines[-1]["answer"] < 0.9 * lines[0]["answer"]
    for line in lines:
        assert line["expert_dropped"] == 0 and 0 < line["expert_entropy"] < np.log(4)
        assert 1 <= line["expert_peak"] <= 2 and 0 <= line["expert_idle"] < 1
        assert 0.9 < line["expert_balance"] < 1.5 and "expert_load" not in line
        assert line["loss"] > line["answer"]


def test_biases_are_whole_steps_of_their_rate(straight):
    """Neither gradient nor weight decay touches them."""
    bias = np.asarray(straight[0].blocks.mlp.bias[...])
    steps = bias / EXPERTS.bias_rate
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    assert np.abs(steps).max() >= 1 and np.abs(steps).max() <= 8.001


@pytest.mark.long
def test_a_resumed_run_is_the_run(straight, tmp_path):
    class Broken(Stage):
        broken = 6

    with pytest.raises(RuntimeError, match="broken"):
        run(tmp_path, Broken)
    model, _ = run(tmp_path)
    for name, weight in named_weights(model).items():
        np.testing.assert_array_equal(weight, named_weights(straight[0])[name], err_msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {"by_rows": True, "sharding": ShardingConfig(MeshConfig(fsdp=2, expert=4), "expert_fsdp")},
        {"by_rows": True, "sharding": ShardingConfig(MeshConfig(fsdp=4, expert=2), "fsdp_whole_experts")},
        {"sharding": ShardingConfig(MeshConfig(fsdp=2, expert=2, tensor=2), "expert_fsdp_tensor")},
    ],
    ids=["by rows", "by rows, whole experts", "tensor"],
)
@pytest.mark.long
def test_how_it_is_computed_changes_little(straight, tmp_path, changes):
    model, lines = run(tmp_path, **changes)
    expected, lines_expected = straight
    np.testing.assert_allclose(lines[0]["answer"], lines_expected[0]["answer"], rtol=1e-4)
    np.testing.assert_allclose(lines[-1]["answer"], lines_expected[-1]["answer"], rtol=2e-2)
    for name, weight in named_weights(model).items():
        if name != "blocks.mlp.bias":
            np.testing.assert_allclose(weight, named_weights(expected)[name], atol=2e-2, err_msg=name)


@pytest.mark.long
def test_parts_of_a_batch_are_the_batch_but_for_the_balance_within_each(straight, tmp_path):
    """The balance loss is of a part's tokens; without it nothing depends on which rows stand together."""

    decoder = dataclasses.replace(DECODER, experts=dataclasses.replace(EXPERTS, balance_weight=0.0))
    whole, _ = run(tmp_path / "1", decoder=decoder)
    parts, lines = run(tmp_path / "2", decoder=decoder, microbatches=2)
    for name, weight in named_weights(parts).items():
        np.testing.assert_allclose(weight, named_weights(whole)[name], atol=1e-3, err_msg=name)
    assert lines[0]["answer"] == pytest.approx(straight[1][0]["answer"], rel=1e-4)


def test_weights_of_the_published_size():
    spec = importlib.util.spec_from_file_location("aqaa_moe", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    total, multiplied = parameters(module.DECODER)
    assert total == 128_377_758_720
    assert multiplied + module.DECODER.vocab * module.DECODER.embed == 19_661_399_040
    dense = dataclasses.replace(module.DECODER, mlp=16, experts=None)
    assert parameters(dense)[0] - parameters(dense)[1] == dense.vocab * dense.embed
    pocket = module.get_config("pocket").system.decoder
    assert pocket.experts.mlp * pocket.experts.top_k + pocket.experts.shared_mlp == pocket.mlp
    assert jax.tree.leaves(pocket.experts.to_dict())
