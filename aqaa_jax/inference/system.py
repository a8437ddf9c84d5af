"""A whole system in memory: tokenizers, decoder, vocoder and the text tokenizer of one model folder."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any, NamedTuple

import jax

from aqaa_jax.checkpoint import folder
from aqaa_jax.codec.tokenizer import DualTokenizer
from aqaa_jax.config import SystemConfig
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.parts import abstract, builders
from aqaa_jax.sharding.partition import device
from aqaa_jax.tokens.text import TextTokenizer
from aqaa_jax.tokens.vocab import Vocab
from aqaa_jax.vocoder.model import Vocoder

SHIPPED = "pocket"
LARGE = 2**22  # weights of a layer, from which on their copies cost more than a longer compilation


class System(NamedTuple):
    """Everything that turns a question into an answer; modules are pytrees, nothing holds state."""

    config: SystemConfig
    vocab: Vocab
    text: TextTokenizer
    tokenizer: DualTokenizer
    decoder: Decoder
    vocoder: Vocoder
    speaker_model: Path | None = None  # the ONNX file that gives speaker vectors, where the folder has one


def shipped_folder() -> Path:
    """The folder of the pocket model that comes with the package."""
    return Path(str(importlib.resources.files("aqaa_jax"))) / "assets" / SHIPPED


def load_system(directory: str | Path | None = None) -> System:
    """Load a model folder (default: the shipped pocket model).

    Raises ``FileNotFoundError`` or ``ValueError`` naming the file and the missing, extra or misshapen tensor.
    """
    directory = shipped_folder() if directory is None else Path(directory)
    config = folder.read_config(directory)
    text_model = directory / folder.TEXT_MODEL
    if not text_model.is_file():
        raise FileNotFoundError(f"{text_model}: missing")
    parts: dict[str, Any] = {
        name: folder.read_part(directory, name, abstract(config, name)) for name in builders(config)
    }
    vocab = Vocab(config.vocab)
    speaker_model = directory / folder.SPEAKER_MODEL
    return System(
        config=config,
        vocab=vocab,
        text=TextTokenizer.load(text_model, vocab),
        tokenizer=DualTokenizer.of(config.tokenizer, parts["linguistic"], parts["semantic"]),
        decoder=parts["decoder"],
        vocoder=Vocoder.of(config.vocoder, parts["flow"], parts["hift"]),
        speaker_model=speaker_model if speaker_model.is_file() else None,
    )


def for_answering(system: System, *, int8: bool = False) -> System:
    """The system in the form that answers fastest on this device; not for checkpoints.

    ``int8`` rounds the decoder's matrices. On a CPU the stacks of decoder and semantic encoder are taken apart where
    their layers are large, which takes the memory of both forms for a moment.
    """
    decoder, tokenizer, config = system.decoder, system.tokenizer, system.config
    on_cpu = device().platform == "cpu"
    if int8:
        decoder = decoder.int8()
    elif on_cpu and _layer_weights(decoder.blocks, config.decoder.layers) >= LARGE:
        decoder = decoder.unrolled()
    semantic = tokenizer.semantic
    if on_cpu and _layer_weights(semantic.encoder.blocks, semantic.config.layers) >= LARGE:
        tokenizer = DualTokenizer.of(config.tokenizer, tokenizer.linguistic, semantic.unrolled())
    return system._replace(decoder=decoder, tokenizer=tokenizer)


def _layer_weights(blocks: Any, layers: int) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(blocks)) // layers
