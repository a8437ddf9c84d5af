"""XLA compiler options per TPU generation, one line each with where it comes from; the only place that spells them.

They reach the compiler through ``compiler_options`` of a compile, never through ``LIBTPU_INIT_ARGS``: a plan, a run and
a saved executable then use the same set, and a name that the installed libtpu does not know is an error. What only the
runtime reads (``RUNTIME``) goes through the environment. ``aqaa plan --check-flags`` compares loss and gradient norm
with and without a set before a run relies on it.

Left out on purpose: offloading all-reduce or reduce-scatter to SparseCores (AXLearn's ``compiler_options.py`` records
abnormal losses with it on v6e and tpu7x).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

VERSION = "2026-11"  # of these tables; part of the digest
LIBTPU = "0.0.42.1"  # that every name was compiled with

_KINDS = {  # what JAX calls the devices of a generation
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}


class Flag(NamedTuple):
    """One option and its provenance."""

    name: str
    value: str
    why: str


_FUSION = (
    Flag("xla_tpu_enable_async_collective_fusion", "true", "MaxText v5p 128B preset: gathers run inside matmuls"),
    Flag("xla_tpu_enable_async_collective_fusion_fuse_all_gather", "true", "MaxText v5p 128B preset"),
    Flag("xla_tpu_enable_async_collective_fusion_multiple_steps", "true", "MaxText v5p 128B preset"),
    Flag("xla_tpu_overlap_compute_collective_tc", "true", "MaxText v5p 128B preset"),
    Flag("xla_enable_async_all_gather", "true", "MaxText v5p 128B preset"),
)
_GATHER = Flag(
    "xla_tpu_prefer_async_allgather_to_allreduce",
    "true",
    "compiled here: else a gather over the whole torus becomes a synchronous all-reduce (64 chips: MFU .444 -> .570)",
)
# Its companion xla_tpu_enable_async_collective_fusion_fuse_all_reduce is left out: with it and replicas (16x16x4 chips)
# the compiler gives up, "requires allocation in the alternate memory"; on 64 chips without replicas both gain 2.5 %.
_REDUCE = Flag("xla_enable_async_all_reduce", "true", "compiled here")
_LOOP = Flag(
    "xla_disable_hlo_passes",
    "while-loop-all-reduce-code-motion",
    "compiled here: micro-batches over fsdp alone stop the compiler in this pass (RET_CHECK, opcode kAdd expected); "
    "openxla/xla #49143 reports wrong gradients of embeddings from it",
)
_DATA_PARALLEL = (
    Flag("xla_tpu_enable_data_parallel_all_reduce_opt", "true", "MaxText presets with replicas, AXLearn"),
    Flag("xla_tpu_data_parallel_opt_different_sized_ops", "true", "MaxText presets with replicas, AXLearn"),
)
_LAYOUT = (
    Flag("xla_tpu_use_minor_sharding_for_major_trivial_input", "true", "MaxText xla_flags_library, v6e layout set"),
    Flag("xla_tpu_relayout_group_size_threshold_for_reduce_scatter", "1", "MaxText xla_flags_library, v6e layout set"),
    Flag("xla_tpu_assign_all_reduce_scatter_layout", "true", "MaxText xla_flags_library, v6e layout set"),
)

GENERATIONS: Mapping[str, tuple[Flag, ...]] = {
    "v4": (*_FUSION, _GATHER, _LOOP),
    "v5e": (*_FUSION, _GATHER, _LOOP),
    "v5p": (*_FUSION, _GATHER, _REDUCE, _LOOP),
    "v6e": (
        Flag("xla_tpu_scoped_vmem_limit_kib", "98304", "MaxText and AXLearn, dense models on v6e"),
        *_FUSION,
        _GATHER,
        _LOOP,
        *_LAYOUT,
    ),
    "tpu7x": (
        Flag("xla_tpu_scoped_vmem_limit_kib", "65536", "tpu-recipes, Ironwood, dense models"),
        Flag("xla_tpu_bf16_emission_mode", "NATIVE_EMISSION", "tpu-recipes, Ironwood"),
        Flag("xla_enable_async_all_gather", "true", "tpu-recipes, Ironwood"),
        _GATHER,
        _LOOP,
    ),
}
SLICES = (  # more than one slice: gradients cross the network
    Flag("xla_tpu_enable_megascale_barrier", "true", "MaxText xla_flags_library, DCN set"),
    *_DATA_PARALLEL,
)
OFFLOAD = (  # activations kept in host memory
    Flag("xla_tpu_enable_all_experimental_scheduler_features", "true", "MaxText host-offload set"),
    Flag("xla_tpu_enable_scheduler_memory_pressure_tracking", "true", "MaxText host-offload set"),
    Flag("xla_tpu_host_transfer_overlap_limit", "24", "MaxText host-offload set"),
    Flag("xla_tpu_aggressive_opt_barrier_removal", "ENABLED", "MaxText host-offload set"),
    Flag("xla_lhs_prioritize_async_depth_over_stall", "ENABLED", "MaxText host-offload set"),
    Flag("xla_tpu_enable_ag_backward_pipelining", "true", "MaxText host-offload set"),
    Flag("xla_should_allow_loop_variant_parameter_in_chain", "ENABLED", "MaxText host-offload set"),
    Flag("xla_should_add_loop_invariant_op_in_chain", "ENABLED", "MaxText host-offload set"),
    Flag("xla_max_concurrent_host_send_recv", "100", "MaxText host-offload set"),
    Flag("xla_tpu_scheduler_percent_shared_memory_limit", "100", "MaxText host-offload set"),
    Flag("xla_latency_hiding_scheduler_rerun", "2", "MaxText host-offload set"),
)
RUNTIME = (  # more than one slice; read by the runtime from LIBTPU_INIT_ARGS, unknown to the compiler
    Flag("megascale_grpc_premap_memory_bytes", str(16 * 2**30), "MaxText: the default of 4 GiB can double a step"),
    Flag("megascale_graph_hang_threshold", "10m", "AXLearn: 5 min is shorter than a slow start"),
    Flag("megascale_error_reporter_abort_on_hang", "true", "MaxText multislice: fail rather than wait"),
    Flag("megascale_error_reporter_abort_on_error", "true", "MaxText multislice: fail rather than wait"),
)


def generation(device_kind: str) -> str:
    """The generation of devices that JAX calls ``device_kind``; empty for what is not a known TPU."""
    return _KINDS.get(device_kind, "")


def compiler_options(chip: str, *, slices: int = 1, more: Sequence[str] = ()) -> dict[str, str]:
    """The set for ``chip`` (empty for no TPU: no options), for ``compiler_options=`` of jit and compile.

    ``more`` comes on top: "offload" for the set of that name, or single options as NAME=VALUE. Raises ``ValueError``
    for a generation without a table or anything else in ``more``.
    """
    if not chip:
        return {}
    if chip not in GENERATIONS:
        raise ValueError(f"no XLA flags for TPU generation {chip!r}; expected one of {', '.join(GENERATIONS)}")
    options = {flag.name: flag.value for flag in GENERATIONS[chip] + (SLICES if slices > 1 else ())}
    for text in more:
        name, equals, value = text.partition("=")
        if not equals and name != "offload":
            raise ValueError(f"XLA option {text!r}; expected offload, or NAME=VALUE")
        options |= {name: value} if equals else {flag.name: flag.value for flag in OFFLOAD}
    return options


def options_for(devices: Iterable[Any], more: Sequence[str] = ()) -> dict[str, str]:
    """The set for a program over ``devices``: that of their generation and number of slices; none off a TPU."""
    devices = list(devices)
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    return compiler_options(generation(devices[0].device_kind), slices=slices, more=more)


def digest(options: Mapping[str, str]) -> str:
    """Twelve hex digits that tell one set of options from another, for logs, file names and checks between hosts."""
    text = json.dumps([VERSION, sorted(options.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
