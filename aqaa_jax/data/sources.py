"""From a path to records: a manifest, a TFDS folder of records, or a foreign TFDS folder."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from aqaa_jax.data.datasets import SHAPES, Dataset, Fields
from aqaa_jax.data.manifest import Manifest
from aqaa_jax.data.records import Source


def opened(path: str | Path, split: str = "train", shape: str | None = None) -> Source:
    """The records at ``path``. ``shape`` is one of ``datasets.SHAPES`` or names columns: ``audio=speech,text=text``.

    Raises ``ValueError`` or ``FileNotFoundError`` naming what is not there or not known.
    """
    if Path(path).is_dir():
        return Dataset(path, split, None if shape is None else _fields(shape))
    if shape is not None:
        raise ValueError(f"{path} is a manifest, which has no columns to name; leave {shape!r} out")
    return Manifest(path)


def _fields(shape: str) -> Fields:
    if shape in SHAPES:
        return SHAPES[shape]
    known = [field.name for field in fields(Fields)]
    pairs = {name: column for name, _, column in (pair.partition("=") for pair in shape.split(","))}
    if "=" not in shape or set(pairs) - set(known) or "audio" not in pairs:
        raise ValueError(
            f"shape {shape!r} is none of {', '.join(SHAPES)}, nor audio=COLUMN with {', '.join(known[1:])}"
        )
    rate = pairs.pop("rate", "0")
    if not rate.isdigit():
        raise ValueError(f"rate={rate} in {shape!r}; expected a number of hertz")
    return Fields(**pairs, rate=int(rate))
