"""Files appear whole or not at all; JSON objects go in and out."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed to ``path`` at the end, removed after an error.

    Missing folders are made. The temporary name ends in ``.part``: nothing that looks for files by their suffix takes
    one for whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | Path, values: Any) -> None:
    """Write ``values`` as indented JSON in one step, folders included."""
    with written(path) as part:
        part.write_text(json.dumps(values, indent=1) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ``FileNotFoundError``, or ``ValueError`` naming the file."""
    try:
        values = json.loads(Path(path).read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds {type(values).__name__}; expected a JSON object")
    return values
