"""Work cut into shards: several processes, resumed shard by shard, problems counted and listed.

A shard is done when its summary is on disk; its data was renamed into place just before. A run that is killed loses
the shards it was working on and nothing else, and the shards of a resumed run are those of an uninterrupted one.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from aqaa_jax.atomic import read_json, write_json

REPORT = "report.json"
WORK = ".work"  # folder of the summaries, kept: they are what a resumed run goes by


class Problem(NamedTuple):
    """One thing that was skipped."""

    where: str
    why: str


class Summary(NamedTuple):
    """What a shard did: ``done`` of ``given`` records, an ``amount`` in the job's unit, and what was skipped."""

    given: int
    done: int
    amount: float
    problems: Sequence[Problem] = ()


class Job(Protocol):
    """Picklable. ``job(k)`` makes shard ``k`` of ``count`` in ``folder``, in one step."""

    @property
    def title(self) -> str: ...

    @property
    def unit(self) -> str:
        """Of the amount, for the progress line."""
        ...

    @property
    def folder(self) -> Path: ...

    @property
    def count(self) -> int: ...

    def __call__(self, shard: int) -> Summary: ...

    def identity(self) -> Mapping[str, Any]:
        """What a resumed run must agree in, JSON-ready."""
        ...


def run(
    job: Job, *, processes: int = 1, say: Callable[[str], None] = lambda text: None, every: float = 5.0
) -> list[Summary]:
    """Make the shards that are missing and return the summaries of all, in order.

    Raises ``ValueError`` if the folder was begun by another job, ``OSError`` if a worker process dies; what a job
    raises stops the run. Finished shards stay.
    """
    begin(job)
    waiting = missing(job)
    if len(waiting) < job.count:
        say(f"[{job.title}] {job.count - len(waiting)} of {job.count} shards are done already")
    progress = _Progress(job, len(waiting), say, every)
    for summary in _results(job, waiting, processes):
        progress.after(summary)
    return summaries(job)


def begin(job: Job) -> None:
    """Make the folder of ``job``, or check that it is this job's."""
    path, identity = job.folder / WORK / "job.json", dict(job.identity())
    if not path.is_file():
        write_json(path, identity)
        return
    before = read_json(path)
    for key, value in identity.items():
        if before.get(key) != value:
            raise ValueError(
                f"{job.folder}: begun with {key} {before.get(key)!r}, now {value!r}; choose another folder"
            )


def missing(job: Job) -> list[int]:
    return [k for k in range(job.count) if not _path(job, k).is_file()]


def make(job: Job, shard: int) -> Summary:
    """Make one shard and record that it is done; to be called in any process."""
    summary = job(shard)
    write_json(_path(job, shard), summary._asdict())
    return summary


def summaries(job: Job) -> list[Summary]:
    """Of all shards, in order; every one must be done."""
    return [_read(job, shard) for shard in range(job.count)]


def report(job: Job, done: Sequence[Summary], **more: Any) -> dict[str, Any]:
    """Write ``report.json``: totals and every problem. Returns it."""
    problems = [problem for summary in done for problem in summary.problems]
    values = {
        "records": sum(s.given for s in done),
        "done": sum(s.done for s in done),
        job.unit: round(sum(s.amount for s in done), 3),
        "skipped": len(problems),
        **more,
        "problems": [problem._asdict() for problem in problems],
    }
    write_json(job.folder / REPORT, values)
    return values


def _path(job: Job, shard: int) -> Path:
    return job.folder / WORK / f"{shard:05d}.json"


def _read(job: Job, shard: int) -> Summary:
    values = read_json(_path(job, shard))
    return Summary(**{**values, "problems": [Problem(*problem) for problem in values["problems"]]})


def _results(job: Job, shards: Sequence[int], processes: int) -> Iterator[Summary]:
    if processes <= 1 or len(shards) <= 1:
        yield from (make(job, shard) for shard in shards)
        return
    # Spawned, not forked: a worker may start an accelerator or threads of its own.
    pool = concurrent.futures.ProcessPoolExecutor(
        min(processes, len(shards)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_worker,  # the job travels once: the index of a large source is large
        initargs=(job,),
    )
    try:
        tasks = [pool.submit(_make_here, shard) for shard in shards]
        for task in concurrent.futures.as_completed(tasks):
            yield task.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise OSError(f"{job.title}: a worker process died (out of memory?); run again to go on") from None
    finally:
        pool.shutdown(cancel_futures=True)


_JOBS: list[Job] = []  # of a worker process: its one job


def _begin_worker(job: Job) -> None:
    _JOBS[:] = [job]


def _make_here(shard: int) -> Summary:
    return make(_JOBS[0], shard)


class _Progress:
    """A line now and then: shards, records, rate, time left."""

    def __init__(self, job: Job, shards: int, say: Callable[[str], None], every: float):
        self.job, self.shards, self.say, self.every = job, shards, say, every
        self.began = self.last = time.monotonic()
        self.made, self.given, self.amount, self.skipped = 0, 0, 0.0, 0

    def after(self, summary: Summary) -> None:
        self.made += 1
        self.given += summary.given
        self.amount += summary.amount
        self.skipped += len(summary.problems)
        now = time.monotonic()
        if now - self.last < self.every and self.made < self.shards:
            return
        self.last, spent = now, max(now - self.began, 1e-9)
        left = spent / self.made * (self.shards - self.made)
        skipped = f"  {self.skipped} skipped" if self.skipped else ""
        self.say(
            f"[{self.job.title}] {self.made}/{self.shards} shards  {self.given / spent:.1f} records/s  "
            f"{self.amount / spent:.1f} {self.job.unit}/s  ETA {left:.0f} s{skipped}"
        )
