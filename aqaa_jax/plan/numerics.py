"""The gate before XLA options are relied on: the same steps with and without them, on the devices at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from aqaa_jax.plan import batches
from aqaa_jax.plan.compile import Job, compiled_or_reason, parts_of
from aqaa_jax.sharding import mesh as meshes
from aqaa_jax.sharding import partition, rules

STEPS = 3  # the second and third see what the first did to the weights
TOLERANCES = {"loss": 1e-3, "grad_norm": 1e-2}  # relative; bfloat16 sums in another order stay below a tenth of these

Figures = list[dict[str, float]]


def check(job: Job, flags: Mapping[str, str], devices: Sequence[Any]) -> tuple[Figures, Figures]:
    """Figures of ``STEPS`` steps without and with ``flags``. Raises ``ValueError`` naming what they change too much."""
    plain, flagged = (figures(dataclasses.replace(job, flags=f), devices) for f in ({}, dict(flags)))
    if reason := differing(plain, flagged):
        raise ValueError(f"these XLA options change the numbers: {reason}")
    return plain, flagged


def differing(plain: Figures, flagged: Figures) -> str:
    """The first figure that differs by more than its tolerance, in words; empty if none does."""
    for step, (one, other) in enumerate(zip(plain, flagged, strict=True), 1):
        for name, tolerance in TOLERANCES.items():
            apart = abs(one[name] - other[name]) / max(abs(one[name]), 1e-30)
            if not apart <= tolerance:
                return (
                    f"step {step}, {name} {one[name]:.6g} without, {other[name]:.6g} with; at most {tolerance:g} apart"
                )
    return ""


def figures(job: Job, devices: Sequence[Any]) -> Figures:
    """Loss and gradient norm of the first steps of ``job`` from seeded weights on one seeded batch."""
    mesh, table = meshes.make_mesh(job.sharding.mesh, devices), rules.rules_of(job.sharding)
    with jax.set_mesh(mesh), partition.partitioning(mesh, table):
        init, step, places = parts_of(job, mesh, table)
        c = job.config
        state, key = jax.jit(init, out_shardings=places)(jax.random.key(0)), jax.random.key(1)
        batch = partition.place_rows(batches.seeded(job.stage, c.batch, c.length, job.decoder.vocab), mesh, table)
        run: Any = compiled_or_reason(step.lower(state, batch, key), job.flags)
        found = []
        for _ in range(STEPS):
            state, metrics = run(state, batch, key)
            found.append({name: float(metrics[name]) for name in TOLERANCES})
    return found
