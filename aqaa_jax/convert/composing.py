"""A system's configuration from those of its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from aqaa_jax.config import SystemConfig, from_dict


def with_part(base: SystemConfig, part: str, config: Any) -> SystemConfig:
    """``base`` with the configuration of one part replaced."""
    if part == "decoder":
        return dataclasses.replace(base, decoder=config)
    section = "tokenizer" if part in ("linguistic", "semantic") else "vocoder"
    return dataclasses.replace(base, **{section: dataclasses.replace(getattr(base, section), **{part: config})})


def part_config(system: SystemConfig, part: str) -> Any:
    """The configuration of one part."""
    return next(getattr(s, part) for s in (system, system.tokenizer, system.vocoder) if hasattr(s, part))


def compose(base: SystemConfig, configs: Mapping[str, Mapping[str, Any]]) -> SystemConfig:
    """``base`` with the parts' own configurations. Raises ``ValueError`` naming two values that do not go together."""
    for part, values in configs.items():
        base = with_part(base, part, from_dict(type(part_config(base, part)), values))
    vocab, mel = base.vocab, base.vocoder.flow.mel
    pairs = {
        "decoder": (("decoder.vocab", base.decoder.vocab, "vocab.size", vocab.size),),
        "linguistic": (("linguistic.codes", base.tokenizer.linguistic.codes, "vocab.linguistic", vocab.linguistic),),
        "semantic": (("semantic.codes", base.tokenizer.semantic.codes, "vocab.semantic", vocab.semantic),),
        "flow": (("flow.vocab", base.vocoder.flow.vocab, "linguistic + semantic", vocab.linguistic + vocab.semantic),),
        "hift": (("hift.sample_rate", base.vocoder.hift.sample_rate, "mel.sample_rate", mel.sample_rate),),
    }
    for part in configs:
        for name, value, other, expected in pairs[part]:
            if value < expected if part == "flow" else value != expected:
                raise ValueError(
                    f"{name} is {value}, {other} is {expected}; give a --config whose values fit the files"
                )
    return base
