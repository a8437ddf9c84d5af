"""What the builders share: records in, ArrayRecord files of flat records out, problems listed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from aqaa_jax.atomic import write_json
from aqaa_jax.data.datasets import Dataset, features
from aqaa_jax.data.records import Source, flat
from aqaa_jax.data.sharded import REPORT, Problem


class RecordsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder of records; a subclass says where they come from. Bad records are skipped and put in ``problems``."""

    VERSION = tfds.core.Version("1.0.0")

    def sources(self) -> dict[str, Source]:
        """The records of each split."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=features(), description=str(type(self).__doc__))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        self.problems: list[Problem] = []
        return {split: self._generate_examples(split, source) for split, source in self.sources().items()}

    def _generate_examples(self, split: str, source: Source) -> Iterator[tuple[str, dict[str, Any]]]:  # type: ignore[override]
        for number in range(len(source)):
            try:
                columns = flat(source[number])
            except (ValueError, OSError) as error:
                self.problems.append(Problem(f"{split} record {number}", str(error)))
                continue
            yield f"{number:09d}", columns


def prepare(builder: RecordsBuilder, *, strict: bool = False) -> Dataset:
    """Make the dataset if it is not there and open its ``train`` split; ``report.json`` lists what was skipped.

    Raises ``ValueError`` for the first bad record if ``strict``.
    """
    if not builder.is_prepared():
        builder.download_and_prepare()
        problems = builder.problems
        counts = {name: split.num_examples for name, split in builder.info.splits.items()}
        report = {"done": counts, "skipped": len(problems), "problems": [p._asdict() for p in problems]}
        write_json(Path(builder.data_dir) / REPORT, report)
        if strict and problems:
            raise ValueError(f"{problems[0].where}: {problems[0].why}")
    return Dataset(builder.data_dir)
