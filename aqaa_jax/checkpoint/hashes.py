"""Hashes of finished files: what a resumed write trusts and what ``verify`` compares with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
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


def digest(path: Path, tell: Callable[[int], None] = lambda done: None) -> str:
    """The hash of a file; of a folder that of the sorted lines ``hash  path`` of its files, as ``sha256sum`` has them.

    ``tell`` is told the bytes done since its last call.
    """
    if path.is_file():
        out = sha256(path)
        tell(path.stat().st_size)
        return out
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    return hashlib.sha256("".join(f"{digest(file, tell)}  {name}\n" for name, file in files).encode()).hexdigest()


def size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def read(journal: Path) -> dict[str, str]:
    """File name -> sha256 from a ``.sha256.json``; empty if it is not one."""
    try:
        return dict(json.loads(journal.read_text())["files"])
    except (ValueError, KeyError, TypeError):
        return {}
