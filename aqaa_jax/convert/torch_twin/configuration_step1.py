"""Configuration of Step1 for Hugging Face transformers. Written by ``aqaa export``; part of aqaa_jax (Apache-2.0)."""

from transformers import PretrainedConfig

EXPERTS = {
    "n_routed_experts": 0,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 0,
    "shared_expert_intermediate_size": 0,
    "scoring_func": "softmax",
    "norm_topk_prob": True,
    "router_aux_loss_coef": 0.0,
    "router_z_loss_coef": 0.0,
    "router_bias_update_rate": 0.0,
}


class Step1Config(PretrainedConfig):
    """The published fields of Step-Audio's ``config.json``, and some of our own.

    ``alibi_slopes`` holds one positive slope per query head where they differ from the published series (``None``
    otherwise). ``tie_word_embeddings`` is false unless a file says otherwise: Step1's head is a matrix of its own,
    although the published files leave the field out and transformers would take that for true. With
    ``n_routed_experts`` above 0 every layer has that many experts of ``moe_intermediate_size`` in place of the dense
    one; ``scoring_func`` is softmax or sigmoid; a ``router_bias_update_rate`` above 0 says that routers have a bias.
    The coefficients of losses are kept for those who train on, and read by nothing here.
    """

    model_type = "step1"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {"num_key_value_heads": "num_attention_groups", "max_position_embeddings": "max_seq_len"}

    def __init__(
        self,
        vocab_size=74752,
        hidden_size=12288,
        intermediate_size=31232,
        num_hidden_layers=88,
        num_attention_heads=96,
        num_attention_groups=8,
        max_seq_len=32768,
        rms_norm_eps=1e-5,
        alibi_slopes=None,
        initializer_range=0.02,
        use_cache=True,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=0,
        tie_word_embeddings=False,
        **kwargs,
    ):
        if hidden_size % num_attention_heads or num_attention_heads % num_attention_groups:
            raise ValueError(
                f"num_attention_heads {num_attention_heads} must divide hidden_size {hidden_size} and be a multiple of "
                f"num_attention_groups {num_attention_groups}"
            )
        if alibi_slopes is not None and len(alibi_slopes) != num_attention_heads:
            raise ValueError(
                f"alibi_slopes has {len(alibi_slopes)} values, expected one per head: {num_attention_heads}"
            )
        for name, default in EXPERTS.items():
            setattr(self, name, kwargs.pop(name, default))
        if self.n_routed_experts and not 1 <= self.num_experts_per_tok <= self.n_routed_experts:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, expected 1 to {self.n_routed_experts}"
            )
        if self.scoring_func not in ("softmax", "sigmoid"):
            raise ValueError(f"scoring_func is {self.scoring_func!r}, expected softmax or sigmoid")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_attention_groups = num_attention_groups
        self.max_seq_len = max_seq_len
        self.rms_norm_eps = rms_norm_eps
        self.alibi_slopes = alibi_slopes
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
