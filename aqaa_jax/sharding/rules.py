"""Strategies: tables from logical axes to mesh axes.

A table is complete: every logical axis is named, a replicated one maps to ``()``. Reading a missing
name is an error, so a new axis cannot be forgotten silently. A mesh axis of one device changes nothing,
so a table may name axes that a given mesh does not use.
"""

from __future__ import annotations

from collections.abc import Mapping

from aqaa_jax.config import ShardingConfig
from aqaa_jax.sharding import axes as ax

DATA = "data"  # replicas of the weights, each with rows of the batch of its own
FSDP = "fsdp"  # rows of the batch too, but the weights are split over it and gathered layer by layer
EXPERT = "expert"  # experts; outside of them, rows of the batch
CONTEXT = "context"  # positions of a row
TENSOR = "tensor"  # heads, feed-forward width, vocabulary, channels
MESH_AXES = (DATA, FSDP, EXPERT, CONTEXT, TENSOR)  # from the slowest links to the fastest

Rules = Mapping[str, tuple[str, ...]]

_REPLICATED: dict[str, tuple[str, ...]] = {name: () for name in ax.ALL_AXES}
_BATCH: dict[str, tuple[str, ...]] = {ax.BATCH: (DATA, FSDP, EXPERT), ax.ATTENDING: (DATA, FSDP, EXPERT)}
_FSDP: dict[str, tuple[str, ...]] = {ax.EMBED: (FSDP,), ax.EXPERT_EMBED: (FSDP,), ax.CHANNELS_IN: (FSDP,)}
_TENSOR: dict[str, tuple[str, ...]] = {
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
_CONTEXT: dict[str, tuple[str, ...]] = {ax.LENGTH: (CONTEXT,), ax.ACT_LENGTH: (CONTEXT,)}
_SEQUENCE: dict[str, tuple[str, ...]] = {ax.LENGTH: (CONTEXT,), ax.ACT_LENGTH: (CONTEXT, TENSOR)}
# Weights are the same all over ``context``: they are split over it as well, and gathered with the rest.
_CONTEXT_FSDP: dict[str, tuple[str, ...]] = {name: (FSDP, CONTEXT) for name in _FSDP}
# To answer with few tokens: no weight travels, every device has all tokens and its part of their width; caches are
# split by rows over ``data``, and whole along ``fsdp``, for where there are fewer rows than devices.
_STATIONARY: dict[str, tuple[str, ...]] = {
    ax.EMBED: (DATA, FSDP),
    ax.ACT_EMBED: (DATA, FSDP),
    ax.ATTENDING: (DATA,),
}
# ``ACT_EXPERTS``: tokens travel to experts along it. Along what else experts are split over, they are gathered.
_EXPERT: dict[str, tuple[str, ...]] = {ax.EXPERTS: (EXPERT,), ax.ACT_EXPERTS: (EXPERT,)}
# Whole experts per device of ``fsdp``: gathered along the leading axis of their weights they arrive in order, while a
# gather along their width takes a copy of all of them to put the rows in order.
_WHOLE_EXPERTS: dict[str, tuple[str, ...]] = {ax.EXPERTS: (FSDP,), ax.EXPERT_EMBED: (EXPERT,)}


def _table(*pieces: Mapping[str, tuple[str, ...]]) -> Rules:
    return {k: v for piece in (_REPLICATED, *pieces) for k, v in piece.items()}


STRATEGIES: Mapping[str, Rules] = {
    "replicated": _table(),
    "data": _table(_BATCH),
    "fsdp": _table(_BATCH, _FSDP),
    "hsdp": _table(_BATCH, _FSDP),  # the same table: its name says that ``data`` has replicas
    "tensor": _table(_BATCH, _TENSOR),
    "stationary": _table(_TENSOR, _STATIONARY),
    "tensor_sequence": _table(_BATCH, _TENSOR, _SEQUENCE),
    "fsdp_tensor": _table(_BATCH, _FSDP, _TENSOR),
    "fsdp_tensor_sequence": _table(_BATCH, _CONTEXT_FSDP, _TENSOR, _SEQUENCE),
    "context": _table(_BATCH, _CONTEXT),
    "fsdp_context": _table(_BATCH, _CONTEXT_FSDP, _CONTEXT),
    "fsdp_tensor_context": _table(_BATCH, _CONTEXT_FSDP, _TENSOR, _CONTEXT),
    "expert": _table(_BATCH, _EXPERT),
    "expert_fsdp": _table(_BATCH, _FSDP, _EXPERT),
    "fsdp_whole_experts": _table(_BATCH, _FSDP, _WHOLE_EXPERTS),
    "expert_fsdp_tensor": _table(_BATCH, _FSDP, _TENSOR, _EXPERT),
}


def strategy(name: str) -> Rules:
    """The rules table called ``name``. Raises ``ValueError`` naming the known ones."""
    try:
        return STRATEGIES[name]
    except KeyError:
        raise ValueError(f"unknown sharding strategy {name!r}; expected one of {sorted(STRATEGIES)}") from None


def rules_of(config: ShardingConfig) -> Rules:
    """The table of ``config.strategy`` with the single entries of ``config.rules`` in place of its own.

    Raises ``ValueError`` naming an unknown strategy, logical axis or mesh axis, or a mesh axis given twice.
    """
    table = strategy(config.strategy)
    for axis, mesh_axes in config.rules.items():
        if axis not in table:
            raise ValueError(f"sharding.rules: unknown logical axis {axis!r}; expected one of {sorted(table)}")
        if unknown := set(mesh_axes) - set(MESH_AXES):
            raise ValueError(f"sharding.rules: {axis!r} goes over {sorted(unknown)}; the mesh axes are {MESH_AXES}")
        if len(set(mesh_axes)) < len(mesh_axes):
            raise ValueError(f"sharding.rules: {axis!r} names a mesh axis twice in {tuple(mesh_axes)}")
    return {**table, **config.rules}
