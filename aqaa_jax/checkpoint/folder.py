"""A model folder: ``config.json``, one safetensors file (or shards) per part, the text tokenizer, a model card
and, where it was imported, the speaker encoder.

``config.json`` is written last: a folder without it is a partial one and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flax import nnx

from aqaa_jax.atomic import write_json
from aqaa_jax.checkpoint.files import load_model, save_model
from aqaa_jax.config import SystemConfig, from_dict, to_dict

Part = TypeVar("Part", bound=nnx.Module)
PARTS = ("linguistic", "semantic", "decoder", "flow", "hift")
TEXT_MODEL = "tokenizer.model"
SPEAKER_MODEL = "campplus.onnx"  # the published speaker encoder; a folder may be without it
CONFIG = "config.json"


def write_folder(
    directory: str | Path,
    config: SystemConfig,
    parts: Mapping[str, nnx.Module],
    text_model: bytes,
    *,
    card: str = "",
    provenance: Mapping[str, Any] | None = None,
    dtype: Any = None,
    tables: Sequence[str] = (),
) -> None:
    """Write a whole system to ``directory``, float weights cast to ``dtype`` if given, ``tables`` to int8 rows.

    ``provenance`` (config, seed, command, versions) is stored in ``config.json``. Raises ``ValueError`` unless
    ``parts`` are exactly ``PARTS``.
    """
    if set(parts) != set(PARTS):
        raise ValueError(f"a model folder has the parts {', '.join(PARTS)}; got {', '.join(sorted(parts))}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).unlink(missing_ok=True)
    for name, part in parts.items():
        metadata = {"part": name}
        save_model(directory / f"{name}.safetensors", part, dtype=dtype, tables=tables, metadata=metadata)
    (directory / TEXT_MODEL).write_bytes(text_model)
    if card:
        (directory / "README.md").write_text(card)
    write_config(directory, config, provenance)


def write_config(directory: str | Path, config: SystemConfig, provenance: Mapping[str, Any] | None = None) -> None:
    """Write ``config.json``, which makes a folder of all parts a model. To be called last."""
    values = {"system": to_dict(config), "parts": list(PARTS), "provenance": dict(provenance or {})}
    write_json(Path(directory) / CONFIG, values)


def read_config(directory: str | Path) -> SystemConfig:
    """The configuration of a model folder. Raises ``FileNotFoundError`` or ``ValueError`` naming the file."""
    path = Path(directory) / CONFIG
    if not Path(directory).is_dir():
        raise FileNotFoundError(f"{directory}: no such model folder")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing, so {directory} is not a (whole) model folder")
    try:
        values = json.loads(path.read_text())["system"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a model configuration ({type(error).__name__}: {error})") from None
    try:
        return from_dict(SystemConfig, values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def read_part(directory: str | Path, name: str, abstract: Part, *, shardings: Any = None) -> Part:
    """Fill the abstract module of one part from its file or shards (``load_model``); strict about names and shapes."""
    return load_model(Path(directory) / f"{name}.safetensors", abstract, shardings=shardings)
