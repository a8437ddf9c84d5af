"""The record of an imported part, ``<part>.import.json``: written when the part is whole, and only then."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aqaa_jax import atomic
from aqaa_jax.checkpoint import folder, hashes
from aqaa_jax.version import __version__

RECORD = ".import.json"


def write_record(
    target: Path, part: str, values: Mapping[str, Any], sha256: Mapping[str, str], account: Mapping[str, Any]
) -> None:
    """Write the record of a part whose files are all there; ``values`` has ``from``, ``source`` and ``config``."""
    sizes = {file: (target / file).stat().st_size for file in sha256}
    record = {"part": part, "version": __version__, **values, "files": sizes, "sha256": sha256, "account": account}
    atomic.write_json(target / f"{part}{RECORD}", record)


def read_record(target: Path, part: str) -> dict[str, Any] | None:
    """The record of an imported part, or None if there is none. Raises ``ValueError`` naming a damaged one."""
    path = target / f"{part}{RECORD}"
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
        return {key: values[key] for key in ("part", "from", "source", "config", "files", "sha256")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the record of an import ({type(error).__name__}: {error})") from None


def read_records(target: Path) -> dict[str, dict[str, Any]]:
    """The records of all parts that are there, by part."""
    records = {part: read_record(target, part) for part in folder.PARTS}
    return {part: record for part, record in records.items() if record is not None}


def verify_part(target: Path, part: str) -> None:
    """Read the files of a part again. Raises ``ValueError`` naming one whose hash is not the recorded one."""
    record = read_record(target, part)
    for file, digest in (record or {}).get("sha256", {}).items():
        if (found := hashes.sha256(target / file)) != digest:
            raise ValueError(f"{target / file}: has sha256 {found}, written was {digest}")
