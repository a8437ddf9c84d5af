"""Step1, the language model of Step-Audio, for PyTorch and Hugging Face transformers (4.48 or newer).

    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

Written by ``aqaa export``; part of aqaa_jax (Apache-2.0), the same function as its ``aqaa_jax/decoder``. A pre-norm
decoder without biases: grouped-query attention, SwiGLU, RMSNorm, an untied head. Positions come from ALiBi alone, with
the square root of the distance: head h adds ``-slope_h * sqrt(i - j)`` to the logit of query i and key j.
Tensor names and shapes are the published ones; experts, which no published Step1 has, are named as in DeepSeek-V3.
Differences from the published module: ``attention_mask`` is respected (batches may be padded on either side), gradient
checkpointing is there, keys and values are cached per head.
The bias is a [heads, L, S] array: for long prompts feed the cache in pieces, or use a server with a fused kernel.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_step1 import Step1Config

# transformers calls the cache past_key_values before 5.24 and cache from then on; arguments are taken by either name.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


def alibi_slopes(heads: int) -> list[float]:
    """The published slopes: 2^(-8k/n), k = 1 ... n, then 2^(-4k/n) for odd k; n: largest power of two up to heads."""
    n = 2 ** int(math.log2(heads))
    return [2 ** (-8 * k / n) for k in range(1, n + 1)] + [2 ** (-4 * k / n) for k in range(1, 2 * (heads - n), 2)]


def attention_bias(slopes: list[float], past: int, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """ALiBi, causality and padding as one additive array [1 or B, heads, L, past + L] in the dtype of ``hidden``.

    ``mask`` [B, past + L] is 0 at padding. Forbidden pairs get the lowest finite number, so that a query which may see
    nothing (padding itself) gives some value, not NaN. As published, the bias is rounded to the activations' dtype.
    """
    device, length = hidden.device, hidden.shape[1]
    keys = torch.arange(past + length, device=device)
    distance = keys[past:, None] - keys[None, :]  # [L, S]; negative: the key is later
    slope = torch.tensor(slopes, dtype=torch.float32, device=device)[None, :, None, None]
    bias = (-slope * distance.clamp(min=0).float().sqrt()).to(hidden.dtype)
    forbidden = (distance < 0)[None, None]
    if mask is not None:
        forbidden = forbidden | (mask == 0)[:, None, None, :]
    return bias.masked_fill(forbidden, torch.finfo(hidden.dtype).min)


class Step1RMSNorm(nn.Module):
    """RMSNorm whose reciprocal root is computed in float32 and rounded before it is multiplied (as published)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inverse = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return x * inverse.to(x.dtype) * self.weight


class Step1Attention(nn.Module):
    """Grouped-query attention: query head h reads key/value head h // (heads / groups)."""

    def __init__(self, config: Step1Config, layer: int):
        super().__init__()
        self.layer, self.groups = layer, config.num_attention_groups
        self.heads, self.head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        width = config.hidden_size
        self.q_proj = nn.Linear(width, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, self.groups * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.groups * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, width, bias=False)

    def forward(self, x: torch.Tensor, bias: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        """``x`` [B, L, hidden], ``bias`` [1 or B, heads, L, S]; with a ``cache``, S counts what it held before."""
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self.groups, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.groups, self.head_dim).transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        if k.shape[2] != bias.shape[3]:
            raise ValueError("Step1 needs a cache that grows (DynamicCache); this one has a fixed length")
        k, v = (y.repeat_interleave(self.heads // self.groups, dim=1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class Step1MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Step1Router(nn.Module):
    """The experts of every token by score plus bias, and the weights of their outputs by score alone; in float32."""

    def __init__(self, config: Step1Config):
        super().__init__()
        self.top_k, self.softmax = config.num_experts_per_tok, config.scoring_func == "softmax"
        self.normalise = config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        bias = torch.zeros(config.n_routed_experts, dtype=torch.float32)
        self.e_score_correction_bias = nn.Parameter(bias, False) if config.router_bias_update_rate else None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``x`` [tokens, hidden] -> experts and weights, [tokens, top_k] each."""
        logits = F.linear(x.float(), self.weight.float())
        scores = logits.softmax(-1) if self.softmax else logits.sigmoid()
        order = scores if self.e_score_correction_bias is None else scores + self.e_score_correction_bias.float()
        experts = order.topk(self.top_k, dim=-1).indices
        weights = scores.gather(-1, experts)
        return experts, weights / weights.sum(-1, keepdim=True) if self.normalise else weights


class Step1MoE(nn.Module):
    """The weighted sum of the experts that a token chose, and a shared expert if there is one; nothing is dropped."""

    def __init__(self, config: Step1Config):
        super().__init__()
        hidden, width, shared = config.hidden_size, config.moe_intermediate_size, config.shared_expert_intermediate_size
        self.gate = Step1Router(config)
        self.experts = nn.ModuleList([Step1MLP(hidden, width) for _ in range(config.n_routed_experts)])
        self.shared_experts = Step1MLP(hidden, shared) if shared else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        experts, weights = self.gate(tokens)
        out = torch.zeros_like(tokens, dtype=torch.float32)
        for e in experts.unique().tolist():
            token, choice = (experts == e).nonzero(as_tuple=True)
            out.index_add_(0, token, self.experts[e](tokens[token]).float() * weights[token, choice, None])
        out = out.to(x.dtype).view_as(x)
        return out if self.shared_experts is None else out + self.shared_experts(x)


class Step1DecoderLayer(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: Step1Config, layer: int):
        super().__init__()
        self.input_layernorm = Step1RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Step1Attention(config, layer)
        self.post_attention_layernorm = Step1RMSNorm(config.hidden_size, config.rms_norm_eps)
        dense = Step1MLP(config.hidden_size, config.intermediate_size) if not config.n_routed_experts else None
        self.mlp = dense or Step1MoE(config)

    def forward(self, x: torch.Tensor, bias: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), bias, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Step1PreTrainedModel(PreTrainedModel):
    """What transformers needs to know to load, place, initialise and checkpoint the modules above."""

    config_class = Step1Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Step1DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]  # moved in steps that bfloat16 would lose
    _supports_cache_class = True

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding, Step1Router)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, Step1RMSNorm):
            nn.init.ones_(module.weight)


class Step1Model(Step1PreTrainedModel):
    """Ids to final normed states."""

    def __init__(self, config: Step1Config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Step1DecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = Step1RMSNorm(config.hidden_size, config.rms_norm_eps)
        # Numbers, not a buffer: transformers builds models on the meta device, where an unsaved buffer would be lost.
        self.slopes = list(config.alibi_slopes or alibi_slopes(config.num_attention_heads))
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        cache: Cache | None = None,
        **unused,  # position_ids, cache_position: distances need no positions
    ) -> BaseModelOutputWithPast:
        """``input_ids`` [B, L] or ``inputs_embeds`` [B, L, hidden]; ``attention_mask`` [B, past + L], 0 at padding.

        ``hidden_states`` of the result: the input of every layer, then the final normed states.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        checkpointing = self.gradient_checkpointing and self.training
        use_cache = (self.config.use_cache if use_cache is None else use_cache) and not checkpointing
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache()
        past = 0 if cache is None else cache.get_seq_length()
        if attention_mask is not None and attention_mask.shape != (x.shape[0], past + x.shape[1]):
            expected = (x.shape[0], past + x.shape[1])
            raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}, expected {expected}")
        bias = attention_bias(self.slopes, past, x, attention_mask)
        states = []
        for layer in self.layers:
            states.append(x)
            run = functools.partial(self._gradient_checkpointing_func, layer.__call__) if checkpointing else layer
            x = run(x, bias, None if checkpointing else cache)
        x = self.norm(x)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_states = (*states, x) if wanted else None
        return BaseModelOutputWithPast(last_hidden_state=x, hidden_states=hidden_states, **{CACHE: cache})


class Step1ForCausalLM(Step1PreTrainedModel, GenerationMixin):
    """Ids to logits of the next id; ``generate`` comes from transformers."""

    def __init__(self, config: Step1Config):
        super().__init__(config)
        self.model = Step1Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """The arguments of ``Step1Model``; ``labels`` [B, L] are shifted inside, -100 is no target.

        ``logits`` [B, L, vocab], or those of the last ``logits_to_keep`` places (0: all).
        """
        cache = past_key_values if cache is None else cache
        out = self.model(input_ids, attention_mask, cache, inputs_embeds, use_cache, output_hidden_states)
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            count = {k: v for k, v in kwargs.items() if k == "num_items_in_batch"}  # of Trainer's accumulation
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **count)
        kept = {CACHE: getattr(out, CACHE), "hidden_states": out.hidden_states}
        result = CausalLMOutputWithPast(loss=loss, logits=logits, **kept)
        return result.to_tuple() if return_dict is False else result
