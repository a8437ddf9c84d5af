"""Answering on TPUs that are not here: one chunk of a prompt and one new token per row, compiled and counted.

Decoding reads all weights and the cache once for a token of every row: the floor is those bytes over the bandwidth of
HBM. Estimated cycles are of no use for products with so few rows (3.5 times the floor), so the time is that of the
bytes that the program moves, plus its collectives without their latency (two for each layer, some microseconds each).
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from aqaa_jax.config import to_dict
from aqaa_jax.decoder.model import Decoder
from aqaa_jax.nn.kv_cache import KVCache
from aqaa_jax.plan import hlo
from aqaa_jax.plan.compile import GIB, Job, compiled_or_reason, everywhere, placed
from aqaa_jax.plan.replay import replay
from aqaa_jax.plan.report import collectives, notes, parameters
from aqaa_jax.plan.topology import Topology, torus
from aqaa_jax.sharding import mesh as meshes
from aqaa_jax.sharding import partition, rules
from aqaa_jax.sharding.axes import ACT_KV_HEADS, ATTENDING, BATCH, HEAD_DIM, LENGTH
from aqaa_jax.training.executable import versions

CHUNK = 512  # tokens of a prompt at a time
WEIGHTS = ("bfloat16", "int8")
CACHE_AXES = (None, ATTENDING, ACT_KV_HEADS, LENGTH, HEAD_DIM)


def prefill(model: Decoder, tokens_BL: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
    """The logits behind a chunk of a prompt, and the cache with it."""
    hidden_BLD, cache = model.hidden(tokens_BL, segment_ids_BL=jnp.ones_like(tokens_BL), cache=cache)
    return model.logits(hidden_BLD[:, -1:])[:, 0], cache


def decode(model: Decoder, token_B: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
    """The likeliest next token of every row, and the cache with the last one."""
    logits_BLV, cache = model(token_B[:, None], segment_ids_BL=jnp.ones_like(token_B)[:, None], cache=cache)
    return jnp.argmax(logits_BLV[:, 0], axis=-1).astype(jnp.int32), cache


def decode_plan(job: Job, target: Topology, weights: str = "bfloat16") -> dict[str, Any]:
    """Memory, bytes and time of a chunk of prefill and of a decoding step of ``job``'s decoder.

    ``job.config``: its ``batch`` rows, a cache of ``length`` tokens each. Raises ``DoesNotFit``, or ``ValueError`` for
    other weights or a mesh that does not suit.
    """
    lowered, mesh = lowered_steps(job, target, weights)
    found = {name: _figures(step, job, target, mesh) for name, step in lowered.items()}
    d, chunk = found["decode"], min(CHUNK, job.config.length)
    floor = floor_bytes(abstract_model(job, weights), _empty_cache(job), len(target.devices))
    return {
        "topology": target.name, "chips": target.chips, "devices": len(target.devices), "weights": weights,
        "mesh": meshes.describe(job.sharding.mesh), "strategy": job.sharding.strategy,
        "batch": job.config.batch, "cache_tokens": job.config.length, "prefill_chunk": chunk,
        "parameters": parameters(job.decoder)[0], "decoder": to_dict(job.decoder),
        "peak_hbm_gib": max(f["peak_hbm_gib"] for f in found.values()), "hbm_limit_gib": target.chip.hbm_gib,
        "weight_bytes": floor["weights"], "cache_bytes": floor["cache"],
        "floor_seconds": sum(floor.values()) / target.chip.hbm,
        "bytes_over_floor": d["hbm_bytes"] / sum(floor.values()),
        "temporaries_over_cache": d["temporaries_gib"] * GIB / floor["cache"],
        "tokens_per_second": job.config.batch / d["seconds"],
        "prefill_seconds_of_whole_cache": -(-job.config.length // chunk) * found["prefill"]["seconds"],
        "prefill": found["prefill"], "decode": d,
        "versions": versions(), "flags": dict(job.flags), "assumed": list(target.chip.assumed),
    }  # fmt: skip


def lowered_steps(job: Job, target: Topology, weights: str) -> tuple[dict[str, Any], Mesh]:
    """``prefill`` and ``decode`` as the compiler gets them, and the mesh. Raises ``ValueError`` as ``decode_plan``."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights of {weights!r}; expected one of {', '.join(WEIGHTS)}")
    mesh, table = meshes.make_mesh(job.sharding.mesh, target.devices), rules.rules_of(job.sharding)
    with jax.set_mesh(mesh), partition.partitioning(mesh, table):
        model = abstract_model(job, weights)
        model = placed(model, partition.shardings(model, mesh, table))
        cache = _cache(job, mesh, table)
        B, out = job.config.batch, (everywhere(mesh, table), None)
        rows = NamedSharding(mesh, partition.to_spec((BATCH,), (B,), mesh, table, name="tokens"))
        token_B = jax.ShapeDtypeStruct((B,), jnp.int32, sharding=rows)
        chunk_BL = jax.ShapeDtypeStruct((B, min(CHUNK, job.config.length)), jnp.int32, sharding=rows)
        steps = {"prefill": (prefill, chunk_BL), "decode": (decode, token_B)}
        return {
            name: jax.jit(step, donate_argnums=2, out_shardings=out).lower(model, tokens, cache)
            for name, (step, tokens) in steps.items()
        }, mesh


def abstract_model(job: Job, weights: str) -> Decoder:
    """The decoder's shapes with weights as they are held for inference."""
    config = dataclasses.replace(job.decoder, param_dtype="bfloat16", remat="none")

    def build() -> Decoder:
        model = Decoder(config, rngs=nnx.Rngs(0))
        return model if weights == "bfloat16" else model.int8(apart=False)

    return jax.eval_shape(build)


def floor_bytes(model: Decoder, cache: Any, devices: int) -> dict[str, float]:
    """Of a device: its even share of what a token cannot do without reading. Of the embedding only a row is read."""
    size = lambda tree: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)) / devices  # noqa: E731
    return {"weights": size(model) - size(model.embedding), "cache": size((cache.k, cache.v))}


def _empty_cache(job: Job) -> KVCache:
    model = abstract_model(job, "bfloat16")
    return jax.eval_shape(lambda: model.empty_cache(job.config.batch, job.config.length))


def _cache(job: Job, mesh: Any, table: rules.Rules) -> KVCache:
    cache = _empty_cache(job)

    def place(x: Any, axes: Any) -> Any:
        spec = partition.to_spec(axes, x.shape, mesh, table, name="cache")
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return KVCache(place(cache.k, CACHE_AXES), place(cache.v, CACHE_AXES), place(cache.length_B, (BATCH,)))


def _figures(lowered: Any, job: Job, target: Topology, mesh: Mesh) -> dict[str, Any]:
    began = time.monotonic()
    with jax.set_mesh(mesh):
        compiled = compiled_or_reason(lowered, job.flags)
    places, memory = torus(target, mesh), compiled.memory_analysis()
    out = replay(hlo.parse(compiled.as_text()), places)
    moving = out.sums["hbm_bytes"] / target.chip.hbm
    work = (out.sums["matmul_flops"] + out.sums["kernel_flops"]) / target.chip.peak
    links = out.sums["ici"] + out.sums["dcn"]
    return {
        "peak_hbm_gib": memory.peak_memory_in_bytes / GIB, "temporaries_gib": memory.temp_size_in_bytes / GIB,
        "hbm_bytes": out.sums["hbm_bytes"], "hbm_seconds": moving, "product_seconds": work, "link_seconds": links,
        "seconds": max(moving, work) + links,
        "bound": max(("hbm", moving), ("compute", work), ("ici", links), key=lambda pair: pair[1])[0],
        "collectives": collectives(out, places, job.decoder.layers), "compile_seconds": time.monotonic() - began,
        "notes": notes(out, 1.0, ""),
    }  # fmt: skip


def table(plan: dict[str, Any]) -> str:
    """``plan`` for the terminal."""
    d, p, ms = plan["decode"], plan["prefill"], 1e3
    held = f"{plan['weight_bytes'] / 1e9:.2f} GB of weights + {plan['cache_bytes'] / 1e9:.2f} GB of cache a device"
    lines = [
        ("on", f"{plan['topology']}: {plan['chips']} chips, {plan['mesh']}, {plan['strategy']}, {plan['weights']}"),
        ("rows", f"{plan['batch']} with a cache of {plan['cache_tokens']} tokens each"),
        ("memory", f"{plan['peak_hbm_gib']:.2f} of {plan['hbm_limit_gib']} GiB"),
        ("floor", f"{held}: {plan['floor_seconds'] * ms:.2f} ms a token"),
        ("decode", f"{d['hbm_bytes'] / 1e9:.2f} GB, {plan['bytes_over_floor']:.3f} of the floor: "
                   f"{d['seconds'] * ms:.2f} ms a token (links {d['link_seconds'] * ms:.2f}, without latency), "
                   f"{plan['tokens_per_second']:,.0f} tokens/s"),
        ("", f"temporaries are {plan['temporaries_over_cache']:.1%} of the cache"),
        ("prefill", f"{p['seconds'] * ms:.1f} ms for {plan['prefill_chunk']} tokens of each row; bound: {p['bound']}"),
    ]  # fmt: skip
    return "\n".join(f"{name:11} {value}" for name, value in lines)
