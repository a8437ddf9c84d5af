"""The exported decoder is what vLLM's built-in Step1 reads: fields, names and shapes, as of its version 0.33.0.

The tables below were read off ``vllm/model_executor/models/step1.py``; ``benchmarks/vllm_step1.py`` runs that module.
"""

import dataclasses

import numpy as np
import pytest

from aqaa_jax.config import DecoderConfig, ExpertsConfig, SystemConfig
from aqaa_jax.convert import step1
from aqaa_jax.convert.export_files import notes

SIZES = {
    "130b": DecoderConfig(),
    "3b": DecoderConfig(embed=3072, mlp=8192, heads=48, kv_heads=4, head_dim=64, layers=32),
    "pocket": DecoderConfig(vocab=6144, embed=256, mlp=768, heads=8, kv_heads=2, head_dim=32, layers=4),
}
STACKED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}
STACKED |= {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}


def parameters(c):
    """vLLM's parameters on one device, from the fields that it reads of ``config.json`` alone."""
    head = c["hidden_size"] // c["num_attention_heads"]
    layer = {
        "input_layernorm.weight": (c["hidden_size"],),
        "self_attn.qkv_proj.weight": (
            (c["num_attention_heads"] + 2 * c["num_attention_groups"]) * head,
            c["hidden_size"],
        ),
        "self_attn.o_proj.weight": (c["hidden_size"], c["num_attention_heads"] * head),
        "post_attention_layernorm.weight": (c["hidden_size"],),
        "mlp.gate_up_proj.weight": (2 * c["intermediate_size"], c["hidden_size"]),
        "mlp.down_proj.weight": (c["hidden_size"], c["intermediate_size"]),
    }
    found = {f"model.layers.{i}.{n}": s for i in range(c["num_hidden_layers"]) for n, s in layer.items()}
    table = (c["vocab_size"], c["hidden_size"])
    return found | {"model.embed_tokens.weight": table, "model.norm.weight": table[1:], "lm_head.weight": table}


@pytest.mark.parametrize("size", SIZES)
def test_every_parameter_is_there_and_nothing_else(size):
    given = {}
    for name, (rows, *rest) in step1.published_shapes(SIZES[size]).items():
        *path, last, field = name.split(".")
        stacked = ".".join([*path, STACKED.get(last, last), field])
        given[stacked] = (rows + given.get(stacked, (0,))[0], *rest)
    assert given == parameters(step1.published_config(SIZES[size]))


@pytest.mark.parametrize("size", SIZES)
def test_fields_that_change_what_it_builds(size):
    values = step1.published_config(SIZES[size])
    assert values["architectures"] == ["Step1ForCausalLM"] and values["rms_norm_eps"] == SIZES[size].norm_eps
    assert values["tie_word_embeddings"] is False  # it ties where the field is missing
    assert not {"attention_bias", "mlp_bias", "num_key_value_heads", "quantization_config"} & set(values)
    assert SIZES[size].head_dim >= 32  # what its Triton attention takes


def test_what_it_cannot_run_is_told():
    c = SIZES["pocket"]
    for changed in (
        dataclasses.replace(c, alibi_slopes=tuple(np.linspace(1, 2, c.heads).tolist())),
        dataclasses.replace(c, experts=ExpertsConfig(experts=4, top_k=2, mlp=64)),
    ):
        (told,) = notes(dataclasses.replace(SystemConfig(), decoder=changed), ("decoder",))
        assert "vLLM's built-in Step1 does not" in told
    assert not list(notes(dataclasses.replace(SystemConfig(), decoder=c), ("decoder",)))
