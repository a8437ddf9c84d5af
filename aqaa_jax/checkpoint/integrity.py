"""Whether a saved step is as it was written: sizes and hashes of its files, kept in its own folder.

A step gets its name only when it is whole, and ``files.json`` is written before that. What the formats themselves
would not notice, a byte changed in a stored value among them, is found here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from aqaa_jax import atomic
from aqaa_jax.checkpoint.hashes import sha256

FILES = "files.json"
HASHED = 1 << 36  # bytes: of a larger step sizes alone are kept, since one process would read all of it back
_LATER = ("_CHECKPOINT_METADATA",)  # files of a step's own folder that Orbax still changes


def record(folder: Path) -> None:
    """Write ``files.json``: every file below ``folder`` with its size and, up to ``HASHED`` bytes in all, its hash."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.relative_to(folder).as_posix() not in _LATER)
    sizes = [file.stat().st_size for file in files]
    hashed = sum(sizes) <= HASHED
    entries = {
        file.relative_to(folder).as_posix(): [size, sha256(file) if hashed else ""]
        for file, size in zip(files, sizes, strict=True)
    }
    atomic.write_json(folder / FILES, {"files": entries})


def recorded(folder: Path) -> bool:
    """Whether ``folder`` says what it should hold."""
    return (folder / FILES).is_file()


def damage(folder: Path) -> str:
    """What is wrong with the first bad file of ``folder``, which has a ``files.json``; empty if all are as written."""
    try:
        entries = atomic.read_json(folder / FILES)["files"]
        for name in _LATER:
            json.loads((folder / name).read_bytes())
    except (OSError, ValueError, KeyError) as error:
        return " ".join(str(error).split())[:200]
    for name, (size, digest) in entries.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes; expected {size}"
        if digest and sha256(file) != digest:
            return f"{name} has other bytes than were written"
    return ""


def set_aside(folder: Path) -> Path:
    """Move ``folder`` to ``PARENT-damaged/NAME`` (``NAME.1`` and so on if there is one) and return where it is now."""
    target = folder.parent.with_name(f"{folder.parent.name}-damaged") / folder.name
    target.parent.mkdir(exist_ok=True)
    number = 0
    while target.exists():
        number += 1
        target = target.with_name(f"{folder.name}.{number}")
    shutil.move(folder, target)
    return target
