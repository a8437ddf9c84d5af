"""The pocket corpus as records: spoken questions with spoken answers, and text in the answer voice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import tensorflow_datasets as tfds

from aqaa_jax.data import corpus
from aqaa_jax.data.builders.base import RecordsBuilder
from aqaa_jax.data.corpus import TAIL_SECONDS, Item
from aqaa_jax.data.records import Part, Pcm, Record, Source, Turn, pcm
from aqaa_jax.data.rendering import Clips, render

RATE = 16000


@dataclasses.dataclass(kw_only=True)
class PocketConfig(tfds.core.BuilderConfig):
    """How much is spoken; ``cache`` keeps the rendered audio and may be a recipe's ``speech`` folder."""

    questions: int = 24000
    voice: int = 1500
    seed: int = 0
    workers: int = 2
    cache: str = ""


class PocketSpeech(RecordsBuilder, skip_registration=True):
    """Splits ``train`` (question and answer), ``voice`` (one answer-voice turn) and ``new_voices`` (held out)."""

    def sources(self) -> dict[str, Source]:
        c = cast(PocketConfig, self.builder_config)
        held_out = corpus.question_utterances(max(1, c.questions // 60), c.seed + 1, "new_voices")
        return {
            "train": PocketSource(corpus.question_utterances(c.questions, c.seed), c.cache, c.workers),
            "voice": PocketSource(corpus.voice_utterances(c.voice, c.seed), c.cache, c.workers),
            "new_voices": PocketSource(held_out, c.cache, c.workers),
        }


class PocketSource:
    """Items of the pocket corpus as records, rendered where ``cache`` lacks them; questions come with their answers.

    What the answer voice says ends in ``TAIL_SECONDS`` of silence, as the recipe has it.
    """

    def __init__(self, items: Sequence[Item], cache: str | Path, workers: int = 2):
        self.items, self.cache = items, Path(cache)
        self._clips = render([item.utterance for item in items], self.cache, (RATE,), workers)
        answers = corpus.answer_utterances() if any(item.question for item in items) else []
        self._answers = render([item.utterance for item in answers], self.cache, (RATE, 22050), workers)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Record:
        item = self.items[index]
        if not item.question:
            part = Part(item.utterance.text, item.style, _sound(self._clips, index, TAIL_SECONDS))
            return Record(item.id, (Turn("assistant", (part,)),))
        asked = Part(item.utterance.text, sound=_sound(self._clips, index))
        answer = Part(item.answer, item.style, _sound(self._answers, item.answer_id, TAIL_SECONDS))
        return Record(item.id, (Turn("human", (asked,)), Turn("assistant", (answer,))))

    def fingerprint(self) -> str:
        return f"{self.items[0].id} .. {self.items[-1].id}"


def _sound(clips: Clips, index: int, tail: float = 0.0) -> Pcm:
    return pcm(np.concatenate([clips[index].wavs[RATE], np.zeros(round(tail * RATE), np.float32)]), RATE)


def pocket_speech(data_dir: str, **values) -> PocketSpeech:
    """The builder; ``values`` are those of ``PocketConfig``, ``cache`` defaults to a folder inside ``data_dir``."""
    config = PocketConfig(name="pocket", **{"cache": str(Path(data_dir) / "speech"), **values})
    return PocketSpeech(config=config, data_dir=data_dir, file_format="array_record")
