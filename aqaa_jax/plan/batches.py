"""Batches as large as a stage can be asked for: every position of every row carries loss."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from aqaa_jax.sharding import partition
from aqaa_jax.sharding.axes import BATCH
from aqaa_jax.sharding.rules import Rules


def shapes(stage: str, batch: int, length: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Name -> shape and dtype of what the loss of ``stage`` reads; a row of ``dpo`` holds one pair."""
    whole = (batch, length)
    found: dict[str, tuple[tuple[int, ...], Any]] = {
        name: (whole, np.int32) for name in ("tokens", "segment_ids", "source", "targets")
    }
    found["loss_mask"] = (whole, np.float32)
    if stage == "dpo":
        found |= {"answer": (whole, np.int32), "reference": (whole, np.float32), "pairs": ((batch, 1), np.float32)}
    return found


def abstract(stage: str, batch: int, length: int, mesh: Mesh, table: Rules) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes, placed as the trainer places rows. Raises ``ValueError`` for rows that do not split evenly."""

    def one(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        spec = partition.to_spec((BATCH, None), shape, mesh, table, name="batch")
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    return {name: one(*of) for name, of in shapes(stage, batch, length).items()}


def seeded(stage: str, batch: int, length: int, vocab: int) -> dict[str, np.ndarray]:
    """Random tokens; a row is one segment, or the two answers of a pair, and every position predicts the next."""
    tokens_BL = np.random.default_rng(0).integers(0, vocab, (batch, length + 1), dtype=np.int32)
    halves_L = 1 + (2 * np.arange(length, dtype=np.int32)) // length if stage == "dpo" else np.ones(length, np.int32)
    values: dict[str, Any] = {
        "tokens": tokens_BL[:, :-1],
        "targets": tokens_BL[:, 1:],
        "segment_ids": halves_L,
        "answer": halves_L,
        "source": np.arange(length, dtype=np.int32),
        "reference": -np.log(vocab),
    }
    return {
        name: np.broadcast_to(np.asarray(values.get(name, 1.0), dtype), shape)
        for name, (shape, dtype) in shapes(stage, batch, length).items()
    }
