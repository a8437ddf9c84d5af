"""This project's side of ``make bench``."""

from __future__ import annotations

from collections.abc import Callable

import items
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aqaa_jax.codec.paraformer import LinguisticEncoder
from aqaa_jax.codec.tokenizer import SemanticTokenizer
from aqaa_jax.config import DecoderConfig, FlowConfig, HiftConfig, LinguisticConfig, SamplingConfig, SemanticConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.inference.generate import generate
from aqaa_jax.vocoder.flow import Condition, Flow
from aqaa_jax.vocoder.hift import Hift

Run = Callable[[], object]
RNGS = {"rngs": nnx.Rngs(0)}


def _ready(function: Callable, *arguments) -> Run:
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*arguments))


def linguistic() -> Run:
    config = LinguisticConfig()
    model = LinguisticEncoder(config, **RNGS)
    frames = jnp.ones((1, items.LINGUISTIC_FRAMES, config.num_mels * config.lfr_stack))
    return _ready(lambda m, x: m(x, jnp.array([items.LINGUISTIC_FRAMES])), model, frames)


def semantic() -> Run:
    config = SemanticConfig()
    model = SemanticTokenizer(config, **RNGS).unrolled()
    mel = jnp.ones((1, items.WHISPER_FRAMES, config.num_mels))
    return _ready(lambda m, x: m(x, jnp.array([items.WHISPER_FRAMES])), model, mel)


def flow() -> Run:
    config = FlowConfig()
    model = Flow(config, **RNGS)
    shape = (1, items.MEL_FRAMES, config.mel.num_mels)
    given = Condition(jnp.ones(shape), jnp.ones((1, shape[2])), jnp.zeros(shape), jnp.ones(shape[:2]))
    return _ready(lambda m, c, x: m.solve(c, x, steps=items.FLOW_STEPS), model, given, jnp.ones(shape))


def hift() -> Run:
    config = HiftConfig()
    model = Hift(config, **RNGS)
    sines, frames = config.harmonics + 1, items.MEL_FRAMES
    arguments = jnp.ones((1, frames, 80)), jnp.zeros((1, sines)), jnp.ones((1, frames * model.hop, sines))
    return _ready(lambda m, *a: m(*a)[0], model, *arguments)


def decode() -> Run:
    return _decode(Decoder.int8)


def decode_float32() -> Run:
    return _decode(Decoder.unrolled)


def _decode(form: Callable[[Decoder], Decoder]) -> Run:
    config = DecoderConfig(**items.DECODER, dtype="float32", param_dtype="float32")
    model = form(Decoder(config, **RNGS))
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=items.NEW_TOKENS)
    prompt = [np.arange(10, 10 + items.PROMPT)]
    return lambda: generate(model, prompt, sampling, stop_ids=(), key=jax.random.key(0))


if __name__ == "__main__":
    items.main({f.__name__: f for f in (linguistic, semantic, flow, hift, decode, decode_float32)})
