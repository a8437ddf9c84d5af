"""Command-line values that several commands take."""

from __future__ import annotations

import argparse
import math


def add_parts(parser: argparse.ArgumentParser, text: str) -> None:
    """``--parts A,B``: a tuple of names, empty by default."""
    parser.add_argument("--parts", type=_names, default=(), metavar="A,B", help=text)


def add_shard_size(parser: argparse.ArgumentParser) -> None:
    """``--shard-gb N``: ``shard_bytes(args.shard_gb)`` is what it stands for."""
    text = "most of one decoder shard (default 5 GB)"
    parser.add_argument("--shard-gb", type=float, default=5.0, metavar="N", help=text)


def shard_bytes(gigabytes: float) -> int:
    """Bytes, rounded up. Raises ``ValueError`` unless ``gigabytes`` is a number above 0."""
    if not 0 < gigabytes < math.inf:
        raise ValueError(f"--shard-gb is {gigabytes}; expected more than 0")
    return math.ceil(gigabytes * 1e9)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
