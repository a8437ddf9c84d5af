"""Names and shapes of the published Step1 checkpoints, at full size without memory."""

import jax
import numpy as np
import pytest
from flax import nnx

from aqaa_jax.checkpoint.tree import named_weights
from aqaa_jax.config import DecoderConfig
from aqaa_jax.convert import step1
from aqaa_jax.decoder.model import Decoder

CHAT = {
    "hidden_size": 12288,
    "intermediate_size": 31232,
    "num_hidden_layers": 88,
    "num_attention_heads": 96,
    "num_attention_groups": 8,
    "vocab_size": 74752,
    "max_seq_len": 32768,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}
TTS = CHAT | {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 48,
    "num_attention_groups": 4,
}
SMALL = DecoderConfig(vocab=10, embed=8, mlp=6, heads=4, kv_heads=2, head_dim=2, layers=3)


def abstract_weights(config):
    return named_weights(jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))


def random_state(config):
    rng = np.random.default_rng(0)
    return {k: rng.normal(size=s).astype(np.float32) for k, s in step1.published_shapes(config).items()}


@pytest.mark.parametrize(
    ("published", "tensors", "parameters"), [(CHAT, 795, 131_946_590_208), (TTS, 291, 3_529_706_496)]
)
def test_published_sizes(published, tensors, parameters):
    config = step1.decoder_config(published)
    shapes = step1.published_shapes(config)
    assert len(shapes) == tensors
    assert sum(int(np.prod(s, dtype=np.int64)) for s in shapes.values()) == parameters
    ours = abstract_weights(config)
    assert sum(int(np.prod(w.shape, dtype=np.int64)) for w in ours.values()) == parameters
    assert {str(w.dtype) for w in ours.values()} == {"bfloat16"}
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == (
        config.kv_heads * config.head_dim,
        published["hidden_size"],
    )


def test_chat_is_the_default():
    assert step1.decoder_config(CHAT) == DecoderConfig()


def test_round_trip_and_names():
    state = random_state(SMALL)
    weights = step1.from_upstream(state, SMALL)
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in abstract_weights(SMALL).items()}
    back = step1.to_upstream(weights, SMALL)
    assert list(back) == list(step1.published_shapes(SMALL))
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    wq = weights["blocks.attention.wq"]
    np.testing.assert_array_equal(wq[1, :, 3], state["model.layers.1.self_attn.q_proj.weight"][6:8].T)
    assert not np.array_equal(weights["head"].T, weights["embedding.table"])


def test_clear_errors():
    state = random_state(SMALL)
    name = "model.layers.2.mlp.up_proj.weight"
    with pytest.raises(ValueError, match=f"{name}.*missing"):
        step1.from_upstream({k: v for k, v in state.items() if k != name}, SMALL)
    with pytest.raises(ValueError, match=r"unexpected published tensor 'extra'"):
        step1.from_upstream(state | {"extra": state[name]}, SMALL)
    with pytest.raises(ValueError, match=rf"{name}.*\(2, 2\)"):
        step1.from_upstream(state | {name: np.zeros((2, 2))}, SMALL)
    with pytest.raises(ValueError, match="'head' is missing"):
        weights = step1.from_upstream(state, SMALL)
        step1.to_upstream({k: v for k, v in weights.items() if k != "head"}, SMALL)
    with pytest.raises(ValueError, match="vocab_size"):
        step1.decoder_config({k: v for k, v in CHAT.items() if k != "vocab_size"})
    with pytest.raises(ValueError, match="heads"):
        step1.decoder_config(CHAT | {"num_attention_heads": 7})
