"""Published Step1 checkpoints (Step-Audio-Chat, -TTS-3B, -AQAA) to our decoder and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from aqaa_jax.config import DecoderConfig, ExpertsConfig
from aqaa_jax.convert import layout
from aqaa_jax.convert.layout import Entry
from aqaa_jax.nn.alibi import alibi_slopes
from aqaa_jax.tokens.vocab import BOS, EOT, PAD

# Published field -> ours; head_dim is derived, weights are never tied whatever the config says.
_FIELDS = {
    "vocab_size": "vocab",
    "hidden_size": "embed",
    "intermediate_size": "mlp",
    "num_attention_heads": "heads",
    "num_attention_groups": "kv_heads",
    "num_hidden_layers": "layers",
    "max_seq_len": "max_length",
    "rms_norm_eps": "norm_eps",
}
# Published name within a layer -> our name within ``blocks``.
_LAYER = {
    "input_layernorm": "attention_norm.scale",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "mlp_norm.scale",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
}
# Experts have no published Step1: fields and names are those that transformers' and vLLM's own mixtures use
# (DeepSeek-V3; the shared width as in Qwen2-MoE).
_EXPERT_FIELDS = {
    "n_routed_experts": "experts",
    "num_experts_per_tok": "top_k",
    "moe_intermediate_size": "mlp",
    "shared_expert_intermediate_size": "shared_mlp",
    "scoring_func": "score",
    "norm_topk_prob": "normalise",
    "router_aux_loss_coef": "balance_weight",
    "router_z_loss_coef": "router_z_weight",
    "router_bias_update_rate": "bias_rate",
}
_PRODUCTS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
_ROUTER, _BIAS, _SHARED = "mlp.gate", "mlp.gate.e_score_correction_bias", "mlp.shared_experts"
_BODY = "model."  # published prefix of everything but the head
_KINDS = {"self_attn.o_proj": "from_heads"} | {f"self_attn.{x}_proj": "to_heads" for x in "qkv"}


def decoder_config(published: Mapping[str, Any], **changes: Any) -> DecoderConfig:
    """Our configuration from a published ``config.json``; ``changes`` override fields of ours.

    Raises ``ValueError`` naming a missing field or a width that the heads do not divide.
    """
    missing = sorted(set(_FIELDS) - set(published))
    if missing:
        raise ValueError(f"Step1 config lacks {missing[0]!r}; it needs {', '.join(_FIELDS)}")
    values = {ours: published[theirs] for theirs, ours in _FIELDS.items()}
    if values["embed"] % values["heads"]:
        raise ValueError(f"hidden_size {values['embed']} does not divide into {values['heads']} heads")
    dtype = stored_dtype(published) or "bfloat16"
    values |= {"head_dim": values["embed"] // values["heads"], "dtype": dtype, "param_dtype": dtype}
    values["alibi_slopes"] = tuple(published.get("alibi_slopes") or ())
    if published.get("n_routed_experts"):
        values["experts"] = ExpertsConfig(**{o: published[t] for t, o in _EXPERT_FIELDS.items() if t in published})
    return DecoderConfig(**(values | changes))


def published_config(config: DecoderConfig, dtype: str = "bfloat16") -> dict[str, Any]:
    """The published ``config.json`` of a decoder whose weights are stored as ``dtype``: inverse of ``decoder_config``.

    Fields that are not published: ``tie_word_embeddings`` (false; readers take a missing one for true), only where
    they differ from the published series ``alibi_slopes``, and those of experts where there are any. Raises
    ``ValueError`` if the heads do not fill the width, which the published layout cannot say.
    """
    if config.heads * config.head_dim != config.embed:
        raise ValueError(
            f"decoder of {config.heads} heads of {config.head_dim} and width {config.embed}: the published layout "
            f"needs heads * head_dim = width"
        )
    values: dict[str, Any] = {"architectures": ["Step1ForCausalLM"], "model_type": "step1"}
    values |= {"bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": EOT}
    values |= {theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()}
    values |= {"torch_dtype": dtype, "tie_word_embeddings": False}
    if config.experts is not None:
        values |= {theirs: getattr(config.experts, ours) for theirs, ours in _EXPERT_FIELDS.items()}
    if own_slopes(config):
        values["alibi_slopes"] = list(config.alibi_slopes)
    return values


def own_slopes(config: DecoderConfig) -> bool:
    """Whether the decoder's ALiBi slopes differ from the published series."""
    return bool(config.alibi_slopes) and not np.array_equal(
        np.asarray(config.alibi_slopes, np.float32), alibi_slopes(config.heads)
    )


def is_decoder(published: Mapping[str, Any]) -> bool:
    """Whether a published config holds every field of a Step1 decoder."""
    return set(_FIELDS) <= set(published)


def stored_dtype(published: Mapping[str, Any]) -> str:
    """The dtype a published config says its weights have, by name; empty if it does not say."""
    return str(published.get("torch_dtype") or published.get("dtype") or "")


def published_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every published tensor of a model of this size with its (out, in) shape: 9 per layer and 3, and experts."""
    c = config
    width, kv_width = c.heads * c.head_dim, c.kv_heads * c.head_dim
    layer = {
        "input_layernorm": (c.embed,),
        "self_attn.q_proj": (width, c.embed),
        "self_attn.k_proj": (kv_width, c.embed),
        "self_attn.v_proj": (kv_width, c.embed),
        "self_attn.o_proj": (c.embed, width),
        "post_attention_layernorm": (c.embed,),
        **_mlp_shapes(config),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab, c.embed)}
    shapes |= {_layer_name(i, name): shape for i in range(c.layers) for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (c.embed,), "lm_head.weight": (c.vocab, c.embed)}


def _mlp_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    def swiglu(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
        into, out = (width, config.embed), (config.embed, width)
        return {f"{prefix}.gate_proj": into, f"{prefix}.up_proj": into, f"{prefix}.down_proj": out}

    if (c := config.experts) is None:
        return swiglu("mlp", config.mlp)
    shapes: dict[str, tuple[int, ...]] = {_ROUTER: (c.experts, config.embed)}
    if c.bias_rate:
        shapes[_BIAS] = (c.experts,)
    for expert in range(c.experts):
        shapes |= swiglu(f"mlp.experts.{expert}", c.mlp)
    return shapes | (swiglu(_SHARED, c.shared_mlp) if c.shared_mlp else {})


def exact(config: DecoderConfig) -> frozenset[str]:
    """The published tensors that stay float32 whatever the dtype of a file: biases of routers, moved in small steps."""
    biased = config.experts is not None and config.experts.bias_rate
    return frozenset(_layer_name(i, _BIAS) for i in range(config.layers)) if biased else frozenset()


def entries(config: DecoderConfig) -> Iterator[Entry]:
    """The table between published and our names: linear weights transposed, heads split, layers and experts stacked."""
    layers = range(config.layers)

    def stacked(ours: str, name: str, kind: str) -> Entry:
        return Entry(f"blocks.{ours}", tuple(_layer_name(i, name) for i in layers), kind, config.head_dim)

    yield Entry("embedding.table", "model.embed_tokens.weight")
    for name, ours in _LAYER.items():
        if config.experts is None or not ours.startswith("mlp."):
            yield stacked(ours, name, "plain" if ours.endswith("norm.scale") else _KINDS.get(name, "linear"))
    if (c := config.experts) is not None:
        yield stacked("mlp.router", _ROUTER, "linear")
        if c.bias_rate:
            yield stacked("mlp.bias", _BIAS, "plain")
        for theirs, ours in _PRODUCTS.items():
            names = tuple(tuple(_layer_name(i, f"mlp.experts.{e}.{theirs}") for e in range(c.experts)) for i in layers)
            yield Entry(f"blocks.mlp.{ours}", names, "linear")
            if c.shared_mlp:
                yield stacked(f"mlp.shared.{ours}", f"{_SHARED}.{theirs}", "linear")
    yield Entry("norm.scale", "model.norm.weight")
    yield Entry("head", "lm_head.weight", "linear")


def locate(shapes: Mapping[str, jax.ShapeDtypeStruct], config: DecoderConfig) -> dict[str, str]:
    """Published name -> its name in a file whose prefixes are another's (Step-Audio-AQAA holds a vision tower too).

    The prefix of the layers is that of the ``layers.0.self_attn.q_proj.weight`` of the decoder's own shape; the head is
    found by suffix and shape. Names that are not found map to what was expected, so that they are told as missing.
    Raises ``ValueError`` if two prefixes fit.
    """
    expected = published_shapes(config)
    prefix = _only(shapes, _layer_name(0, "self_attn.q_proj"), expected, _BODY)
    head = _only(shapes, "lm_head.weight", expected, "")
    return {n: head + n if n == "lm_head.weight" else prefix + n.removeprefix(_BODY) for n in expected}


def _only(
    shapes: Mapping[str, jax.ShapeDtypeStruct], name: str, expected: Mapping[str, tuple[int, ...]], usual: str
) -> str:
    suffix = name.removeprefix(usual)
    found = [n.removesuffix(suffix) for n, t in shapes.items() if f".{n}".endswith(f".{suffix}")]
    fitting = [p for p in found if shapes[p + suffix].shape == expected[name]]
    if len(fitting) > 1 and usual not in fitting:
        raise ValueError(f"Step1 shards: {suffix!r} is there under the prefixes {', '.join(map(repr, fitting))}")
    return usual if usual in fitting or not fitting else fitting[0]


def from_upstream(state: Mapping[str, np.ndarray], config: DecoderConfig) -> dict[str, np.ndarray]:
    """Our weights, by name, from a published state dict.

    The head is read from ``lm_head.weight``, never tied. Raises ``ValueError`` naming the first missing,
    unexpected or misshapen tensor.
    """
    for name, shape in published_shapes(config).items():
        if name in state and tuple(state[name].shape) != shape:
            raise ValueError(f"Step1 state dict: {name!r} has shape {tuple(state[name].shape)}, expected {shape}")
    return layout.read(entries(config), state, source="Step1 state dict")


def to_upstream(weights: Mapping[str, np.ndarray], config: DecoderConfig) -> dict[str, np.ndarray]:
    """The exact inverse of ``from_upstream``. Raises ``ValueError`` naming a missing or unexpected weight."""
    out = layout.write(entries(config), weights, source="decoder weights")
    return {name: np.ascontiguousarray(out[name]) for name in published_shapes(config)}


def _layer_name(layer: int, name: str) -> str:
    return f"model.layers.{layer}.{name}" + ("" if name == _BIAS else ".weight")
