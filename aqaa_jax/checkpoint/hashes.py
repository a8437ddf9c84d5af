"""Hashes of finished files: what a resumed write trusts and what ``verify`` compares with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

SUFFIX = ".sha256.json"
_BLOCK = 1 << 24  # bytes hashed at a time


def sha256(path: Path) -> str:
    """The hash of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_BLOCK):
            digest.update(piece)
    return digest.hexdigest()


def read(journal: Path) -> dict[str, str]:
    """File name -> sha256 from a ``.sha256.json``; empty if it is not one."""
    try:
        return dict(json.loads(journal.read_text())["files"])
    except (ValueError, KeyError, TypeError):
        return {}
