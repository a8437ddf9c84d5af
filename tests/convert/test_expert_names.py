"""Decoders with experts under published names: the table both ways, and export and import of whole folders."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from aqaa_jax.checkpoint import folder
from aqaa_jax.checkpoint.files import save_model
from aqaa_jax.checkpoint.shards import write_shards
from aqaa_jax.checkpoint.tree import layer_name, named_weights, with_weights
from aqaa_jax.config import DecoderConfig, ExpertsConfig, SystemConfig
from aqaa_jax.convert import export, layout, step1
from aqaa_jax.convert.part_source import PartSource
from aqaa_jax.convert.published_part import published_part
from aqaa_jax.decoder.model import Decoder

EXPERTS = ExpertsConfig(experts=3, top_k=2, mlp=6, shared_mlp=4, score="sigmoid", bias_rate=0.01)
SMALL = DecoderConfig(vocab=10, embed=8, mlp=0, heads=4, kv_heads=2, head_dim=2, layers=2, experts=EXPERTS)
LAYER = "model.layers.1."


def random_state(config):
    rng = np.random.default_rng(0)
    return {k: rng.normal(size=s).astype(np.float32) for k, s in step1.published_shapes(config).items()}


def abstract(config):
    return jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))


def test_names_and_shapes():
    shapes = step1.published_shapes(SMALL)
    assert len(shapes) == 3 + 2 * (6 + 2 + 3 * 3 + 3)
    assert {k.removeprefix(LAYER): v for k, v in shapes.items() if k.startswith(LAYER + "mlp.")} == {
        "mlp.gate.weight": (3, 8),
        "mlp.gate.e_score_correction_bias": (3,),
        **{f"mlp.experts.{e}.{p}_proj.weight": (6, 8) for e in range(3) for p in ("gate", "up")},
        **{f"mlp.experts.{e}.down_proj.weight": (8, 6) for e in range(3)},
        **{f"mlp.shared_experts.{p}_proj.weight": (4, 8) for p in ("gate", "up")},
        "mlp.shared_experts.down_proj.weight": (8, 4),
    }
    plain = dataclasses.replace(SMALL, experts=dataclasses.replace(EXPERTS, shared_mlp=0, bias_rate=0.0))
    assert not any("shared" in name or "bias" in name for name in step1.published_shapes(plain))
    assert not step1.exact(plain)


def test_round_trip_bit_for_bit():
    state = random_state(SMALL)
    weights = step1.from_upstream(state, SMALL)
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in named_weights(abstract(SMALL)).items()}
    np.testing.assert_array_equal(weights["blocks.mlp.up"][1, 2], state[LAYER + "mlp.experts.2.up_proj.weight"].T)
    back = step1.to_upstream(weights, SMALL)
    assert set(back) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    with pytest.raises(ValueError, match=r"'blocks.mlp.up' is a stack of \(2, 2\), expected \(2, 3\)"):
        step1.to_upstream(weights | {"blocks.mlp.up": weights["blocks.mlp.up"][:, :2]}, SMALL)
    with pytest.raises(ValueError, match=r"experts.1.gate_proj.weight' is missing"):
        step1.from_upstream({k: v for k, v in state.items() if "experts.1.gate" not in k}, SMALL)


def test_config_both_ways():
    config = dataclasses.replace(SMALL, dtype="float32", param_dtype="float32")
    values = json.loads(json.dumps(step1.published_config(config, "float32")))
    assert values["n_routed_experts"] == 3 and values["num_experts_per_tok"] == 2
    assert values["shared_expert_intermediate_size"] == 4 and values["scoring_func"] == "sigmoid"
    assert step1.decoder_config(values) == config
    dense = dataclasses.replace(config, mlp=6, experts=None)
    assert not any("expert" in key for key in step1.published_config(dense))


@pytest.mark.parametrize("apart", [False, True], ids=["stacked", "layers apart"])
def test_every_piece_of_a_folder(tmp_path, apart):
    """As an export reads it, expert by expert, from one file or from shards with a tensor per layer."""
    state, config = random_state(SMALL), SystemConfig(decoder=SMALL)
    weights = step1.from_upstream(state, SMALL)
    if apart:
        entries = {e.ours: e for e in layout.per_layer(step1.entries(SMALL))}
        assert entries[layer_name("blocks.mlp.gate", 1)].stack == (3,)
        like = named_weights(abstract(SMALL))
        shape = lambda e: like[e.ours].shape if e.ours in like else weights[_stacked(e.ours)].shape[1:]  # noqa: E731
        plan = {n: jax.ShapeDtypeStruct(shape(e), np.float32) for n, e in entries.items()}
        read = lambda name: layout.blocks(entries[name], state.__getitem__, np.dtype(np.float32))  # noqa: E731
        write_shards(tmp_path, plan, read, prefix="decoder", max_bytes=3000)
    else:
        save_model(tmp_path / "decoder.safetensors", with_weights(abstract(SMALL), weights), dtype=np.float32)
    source = PartSource(tmp_path, config, "decoder")
    for dtype in ("float32", "bfloat16"):
        published = published_part("decoder", config, source, dtype)
        assert list(published.plan) == list(step1.published_shapes(SMALL))
        for name, tensor in published.plan.items():
            value = np.concatenate([np.asarray(b).reshape(-1) for b in published.read(name)]).reshape(tensor.shape)
            kept = dtype == "float32" or name in step1.exact(SMALL)
            assert value.dtype == tensor.dtype == (np.float32 if kept else jax.numpy.bfloat16)
            if apart or not kept:
                np.testing.assert_array_equal(value, state[name].astype(tensor.dtype), err_msg=name)


def _stacked(name):
    return name.replace("blocks.0.", "blocks.").replace("blocks.1.", "blocks.")


def test_exported_folder(golden_folder, golden_config, tmp_path):
    decoder = dataclasses.replace(golden_config.decoder, mlp=0, layers=1, experts=EXPERTS)
    model = Decoder(decoder, rngs=nnx.Rngs(0))
    save_model(tmp_path / "decoder.safetensors", model)
    (tmp_path / folder.TEXT_MODEL).write_bytes((golden_folder / folder.TEXT_MODEL).read_bytes())
    folder.write_config(tmp_path, dataclasses.replace(golden_config, decoder=decoder))
    planned = export.plan(tmp_path, parts=("decoder",), dtype="float32")
    assert any("experts" in note for note in planned.notes)
    export.write(planned, tmp_path / "out", say=lambda text: None)
    stored = load_file(tmp_path / "out" / "model-00001-of-00001.safetensors")
    assert {k: v.shape for k, v in stored.items()} == step1.published_shapes(decoder)
    weights = step1.from_upstream(stored, decoder)
    for name, value in named_weights(model).items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)
    assert export.verify(planned, tmp_path / "out", say=lambda text: None) == len(stored)
