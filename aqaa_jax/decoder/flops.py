"""How much arithmetic a decoder is, from its configuration alone."""

from __future__ import annotations

import functools
import math

import jax
from flax import nnx

from aqaa_jax.config import DecoderConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.sharding.axes import EXPERTS
from aqaa_jax.sharding.partition import is_variable


@functools.lru_cache(maxsize=8)
def parameters(decoder: DecoderConfig) -> tuple[int, int]:
    """(all weights, those that multiply a token: without the embedding table, of the experts those it goes to)."""
    model = jax.eval_shape(lambda: Decoder(decoder, rngs=nnx.Rngs(0)))
    total, active, experts = 0, 0.0, decoder.experts
    for leaf in jax.tree.leaves(model, is_leaf=is_variable):
        size = math.prod(leaf.get_value().shape)
        total += size
        chosen = EXPERTS in leaf.get_metadata()["axes"]
        active += size * experts.top_k / experts.experts if experts is not None and chosen else size
    return total, round(active) - decoder.vocab * decoder.embed


def model_flops(decoder: DecoderConfig, batch: int, length: int) -> float:
    """Of one training step: tokens x (6 x parameters that multiply + 6 x layers x length x heads x head size).

    Forward and backward of every weight matrix that a token meets, head included and embedding table not, and of causal
    attention at half its square.
    """
    attention = 6 * decoder.layers * length * decoder.heads * decoder.head_dim
    return float(batch * length) * (6 * parameters(decoder)[1] + attention)
