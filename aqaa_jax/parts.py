"""The five parts of a system that hold weights, by name: one list for training, packaging, loading and conversion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from aqaa_jax.codec.tokenizer import LinguisticTokenizer, SemanticTokenizer
from aqaa_jax.config import SystemConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.vocoder.flow import Flow
from aqaa_jax.vocoder.hift import Hift


def builders(config: SystemConfig) -> dict[str, Callable[[], nnx.Module]]:
    """Part name -> constructor with fresh weights."""
    return {
        "linguistic": lambda: LinguisticTokenizer(config.tokenizer.linguistic, rngs=nnx.Rngs(0)),
        "semantic": lambda: SemanticTokenizer(config.tokenizer.semantic, rngs=nnx.Rngs(0)),
        "decoder": lambda: Decoder(config.decoder, rngs=nnx.Rngs(0)),
        "flow": lambda: Flow(config.vocoder.flow, rngs=nnx.Rngs(0)),
        "hift": lambda: Hift(config.vocoder.hift, rngs=nnx.Rngs(0)),
    }


def abstract(config: SystemConfig, name: str) -> Any:
    """The part ``name`` with shapes in place of arrays; what ``checkpoint.files.load_model`` fills."""
    return jax.eval_shape(builders(config)[name])
