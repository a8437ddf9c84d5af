"""Strategies: tables from logical axes to mesh axes.

A table is complete: every logical axis is named, a replicated one maps to ``()``. Reading a missing
name is an error, so a new axis cannot be forgotten silently.
"""

from __future__ import annotations

from collections.abc import Mapping

from aqaa_jax.sharding import axes as ax

DATA = "data"
FSDP = "fsdp"
TENSOR = "tensor"
MESH_AXES = (DATA, FSDP, TENSOR)

Rules = Mapping[str, tuple[str, ...]]

_REPLICATED: dict[str, tuple[str, ...]] = {name: () for name in ax.ALL_AXES}
_BATCH_OVER_DATA: dict[str, tuple[str, ...]] = {ax.BATCH: (DATA, FSDP)}
_FSDP_WEIGHTS: dict[str, tuple[str, ...]] = {
    ax.EMBED: (FSDP,),
    ax.CHANNELS_IN: (FSDP,),
}
_TENSOR_WEIGHTS: dict[str, tuple[str, ...]] = {
    ax.HEADS: (TENSOR,),
    ax.KV_HEADS: (TENSOR,),
    ax.MLP: (TENSOR,),
    ax.VOCAB: (TENSOR,),
    ax.CHANNELS: (TENSOR,),
    ax.CODEBOOK: (TENSOR,),
    ax.ACT_HEADS: (TENSOR,),
    ax.ACT_KV_HEADS: (TENSOR,),
    ax.ACT_MLP: (TENSOR,),
    ax.ACT_VOCAB: (TENSOR,),
}

STRATEGIES: Mapping[str, Rules] = {
    "replicated": _REPLICATED,
    "data": {**_REPLICATED, **_BATCH_OVER_DATA},
    "fsdp": {**_REPLICATED, **_BATCH_OVER_DATA, **_FSDP_WEIGHTS},
    "tensor": {**_REPLICATED, **_BATCH_OVER_DATA, **_TENSOR_WEIGHTS},
    "fsdp_tensor": {**_REPLICATED, **_BATCH_OVER_DATA, **_FSDP_WEIGHTS, **_TENSOR_WEIGHTS},
}


def strategy(name: str) -> Rules:
    """The rules table called ``name``. Raises ``ValueError`` naming the known ones."""
    try:
        return STRATEGIES[name]
    except KeyError:
        raise ValueError(f"unknown sharding strategy {name!r}; expected one of {sorted(STRATEGIES)}") from None
