"""Other ways to run a job: those that would make it fit, and the best of a grid."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from aqaa_jax.plan.compile import DoesNotFit, Job, batch_parts, compile_step, state_gib
from aqaa_jax.plan.report import report
from aqaa_jax.plan.topology import Topology
from aqaa_jax.sharding.mesh import describe

Say = Callable[[str], None]
LARGER = 1.05  # a slice with so much room over the estimate is recommended


def with_remat(job: Job, policy: str) -> Job:
    return dataclasses.replace(job, decoder=dataclasses.replace(job.decoder, remat=policy))


def with_microbatches(job: Job, many: int) -> Job:
    loop = dataclasses.replace(job.config.loop, microbatches=many)
    return dataclasses.replace(job, config=dataclasses.replace(job.config, loop=loop))


def with_moment(job: Job, dtype: str) -> Job:
    optimizer = dataclasses.replace(job.config.optimizer, mu_dtype=dtype)
    return dataclasses.replace(job, config=dataclasses.replace(job.config, optimizer=optimizer))


def describe_job(job: Job) -> str:
    """What a search varies, in a few words."""
    c = job.config
    moment = f", first moment {c.optimizer.mu_dtype}" if c.optimizer.mu_dtype else ""
    return f"remat {job.decoder.remat}, {c.loop.microbatches} microbatches of {c.batch} rows{moment}, " + describe(
        job.sharding.mesh
    )


def remedies(job: Job, target: Topology) -> Iterator[tuple[str, Job]]:
    """Changes that save memory, each on top of those before, from the cheapest in time to the dearest."""
    if job.decoder.remat != "full":
        job = with_remat(job, "full")
        yield "remat full", job
    rows, many = job.config.batch // batch_parts(job.sharding, target.devices), job.config.loop.microbatches
    if rows // many > 1:
        job = with_microbatches(job, rows)
        yield f"{rows} microbatches", job
    if not job.config.optimizer.mu_dtype:
        job = with_moment(job, "bfloat16")
        yield "first moment in bfloat16", job


def what_would_fit(job: Job, target: Topology, error: DoesNotFit, say: Say) -> str:
    """One line: the first changes with which the compiler agrees, or how many more chips the state asks for."""
    tried, other = [], job
    for name, other in remedies(job, target):
        tried.append(name)
        say(f"trying {', '.join(tried)} ...")
        try:
            program = compile_step(other, target)
        except DoesNotFit as again:
            error = again
            continue
        peak = program.compiled.memory_analysis().peak_memory_in_bytes / 2**30
        return f"it fits with {', '.join(tried)}: {peak:.2f} of {target.chip.hbm_gib} GiB"
    state = state_gib(other, target)
    rest = error.needed - state
    room = error.available - rest
    if room > 0:
        times = state / room * LARGER
        return (
            f"the state takes {state:.2f} GiB a device, the rest {rest:.2f}: about {times:.1f} times the chips would do"
        )
    return f"beside {state:.2f} GiB of state a device needs {rest:.2f} GiB: shorter rows, or rows split over devices"


def grid(job: Job, remats: Sequence[str], microbatches: Sequence[int], shardings: Sequence[Any]) -> list[Job]:
    """Every combination that is possible, the least memory first."""
    jobs = []
    for sharding, many, remat in itertools.product(shardings, microbatches, remats):
        loop = dataclasses.replace(job.config.loop, sharding=sharding, microbatches=many)
        config = dataclasses.replace(job.config, loop=loop)
        if job.config.batch % many == 0:
            jobs.append(with_remat(dataclasses.replace(job, config=config), remat))
    return jobs


def search(jobs: Sequence[Job], target: Topology, token_budget: float, say: Say) -> list[dict[str, Any]]:
    """The plans of all jobs that fit; what does not is said and left out."""
    plans = []
    for number, job in enumerate(jobs, 1):
        try:
            plan = report(job, target, compile_step(job, target), token_budget)
        except ValueError as error:  # too large, or a combination that shapes or compiler refuse
            say(f"{number}/{len(jobs)} {describe_job(job)}: {error}")
            continue
        say(
            f"{number}/{len(jobs)} {describe_job(job)}: {plan['peak_hbm_gib']:.1f} GiB, MFU {plan['predicted_mfu']:.1%}"
        )
        plans.append(plan | {"variant": describe_job(job)})
    return plans


def front(plans: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The plans that no other beats in both memory and predicted MFU, the smallest first."""
    best: list[dict[str, Any]] = []
    for plan in sorted(plans, key=lambda p: (p["peak_hbm_gib"], -p["predicted_mfu"])):
        if not best or plan["predicted_mfu"] > best[-1]["predicted_mfu"]:
            best.append(plan)
    return best
