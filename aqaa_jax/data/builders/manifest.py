"""A manifest and its audio files as one self-contained dataset."""

from __future__ import annotations

import dataclasses
from typing import cast

import tensorflow_datasets as tfds

from aqaa_jax.data.builders.base import RecordsBuilder
from aqaa_jax.data.manifest import Manifest
from aqaa_jax.data.records import Source


@dataclasses.dataclass(kw_only=True)
class ManifestConfig(tfds.core.BuilderConfig):
    """``splits``: manifest file by split name."""

    splits: dict[str, str] = dataclasses.field(default_factory=dict)


class SpokenManifest(RecordsBuilder, skip_registration=True):
    """Conversations of a JSONL manifest (docs/data.md), sound as 16-bit samples at its own rate."""

    def sources(self) -> dict[str, Source]:
        config = cast(ManifestConfig, self.builder_config)
        return {split: Manifest(path) for split, path in config.splits.items()}


def spoken_manifest(name: str, splits: dict[str, str], data_dir: str) -> SpokenManifest:
    """The builder for manifest files by split: ``prepare(spoken_manifest("talk", {"train": "talk.jsonl"}, "out"))``."""
    return SpokenManifest(
        config=ManifestConfig(name=name, splits=splits), data_dir=data_dir, file_format="array_record"
    )
