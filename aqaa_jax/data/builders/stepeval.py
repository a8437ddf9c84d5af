"""StepEval-Audio-360 as a TFDS dataset: ``data.stepeval`` reads the clone."""

from __future__ import annotations

import dataclasses
from typing import cast

import tensorflow_datasets as tfds

from aqaa_jax.data.builders.base import RecordsBuilder
from aqaa_jax.data.records import Source
from aqaa_jax.data.stepeval import StepEvalSource


@dataclasses.dataclass(kw_only=True)
class StepEvalConfig(tfds.core.BuilderConfig):
    """``folder``: where the dataset was cloned (``data/*.parquet`` and ``audios.tar.gz``)."""

    folder: str = ""


class StepEval(RecordsBuilder, skip_registration=True):
    """Split ``test``: the conversations with the recordings of their human turns; the style label is the category."""

    def sources(self) -> dict[str, Source]:
        return {"test": StepEvalSource(cast(StepEvalConfig, self.builder_config).folder)}


def step_eval(folder: str, data_dir: str) -> StepEval:
    """The builder for a clone of the dataset."""
    config = StepEvalConfig(name="audio_360", folder=str(folder))
    return StepEval(config=config, data_dir=data_dir, file_format="array_record")
