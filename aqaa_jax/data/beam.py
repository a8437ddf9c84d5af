"""Sharded work as an Apache Beam pipeline: the same shards by the same function, on any runner (extra ``beam``)."""

from __future__ import annotations

from collections.abc import Sequence

from aqaa_jax.data import sharded
from aqaa_jax.data.sharded import Job, Summary


def run(job: Job, arguments: Sequence[str]) -> list[Summary]:
    """Make the missing shards of ``job`` in a pipeline with Beam's own ``arguments`` (``--runner=DirectRunner`` ...).

    ``job.folder`` must be one that all workers can write. Returns the summaries of all shards. Raises ``ValueError``
    if Beam is not installed.
    """
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("Apache Beam is missing: pip install 'aqaa_jax[beam]'") from None
    sharded.begin(job)
    options = PipelineOptions(list(arguments), save_main_session=False)
    with beam.Pipeline(options=options) as pipeline:
        shards = pipeline | "Shards" >> beam.Create(sharded.missing(job)) | "Spread" >> beam.Reshuffle()
        _ = shards | "Make" >> beam.Map(_made, job)
    return sharded.summaries(job)


def _made(shard: int, job: Job) -> int:
    return sharded.make(job, shard).done
