"""A tensor as consecutive blocks, written as its raw values: what every writer of files does with one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np


def write_blocks(
    name: str,
    tensor: jax.ShapeDtypeStruct,
    blocks: Iterable[np.ndarray],
    write: Callable[[Any], Any],  # of a buffer of bytes
    tell: Callable[[int], None] = lambda done: None,
) -> None:
    """Hand the row-major values of ``tensor`` to ``write``, a block at a time; ``tell`` gets the bytes of each.

    A block is some rows, or a flat run of elements. Raises ``ValueError`` naming the tensor whose blocks do not fit.
    """
    done, planned = 0, math.prod(tensor.shape)
    for block in blocks:
        rows = block.shape[1:] == tensor.shape[1:] and block.ndim == len(tensor.shape)
        if block.dtype != tensor.dtype or not (rows or block.ndim == 1):
            raise ValueError(
                f"tensor {name!r}: got rows {block.dtype} {block.shape}, planned {tensor.dtype} {tensor.shape}"
            )
        data = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
        write(data)
        done += block.size
        tell(data.size)
        del block, data  # not held while the next one is read
    if done != planned:
        rows = done * tensor.shape[0] / planned if planned else done
        raise ValueError(f"tensor {name!r}: got {rows:g} rows, planned {tensor.shape}")
