"""The tasks over the tokenized corpus of a recipe, made on demand: its sets seen as records, then ``examples``."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aqaa_jax import atomic
from aqaa_jax.config import WeaveConfig
from aqaa_jax.data import examples
from aqaa_jax.data.corpus import Item
from aqaa_jax.data.records import Codes, Part, Record, Turn
from aqaa_jax.tokens.interleave import unweave_audio
from aqaa_jax.tokens.text import TextTokenizer
from aqaa_jax.tokens.vocab import Vocab

STREAMS = ("linguistic", "semantic")
TASKS = ("asr", "tts", "continuation", "tqta", "tqtaa", "aqta", "aqtaa", "transcript_first")


@dataclass(frozen=True)
class SpokenSet:
    """Items and the woven audio ids of each (whole 2:3 groups, ids of the decoder's vocabulary)."""

    items: Sequence[Item]
    audio: Sequence[np.ndarray]

    def emphasised(self, families: Sequence[str]) -> SpokenSet:
        """The set with the items of a family, or of a style, once more for every time it is named.

        Raises ``ValueError`` for a name that has no item.
        """
        order = list(range(len(self.items)))
        for family in families:
            members = [i for i, item in enumerate(self.items) if family in (item.family, item.style)]
            if not members:
                known = sorted({name for item in self.items for name in (item.family, item.style) if name})
                raise ValueError(f"no question of family or style {family!r}; there are {', '.join(known)}")
            order += members
        return SpokenSet([self.items[i] for i in order], [self.audio[i] for i in order])


@dataclass(frozen=True)
class SpokenTasks:
    """``questions`` to be answered, ``answers`` indexed by answer id, ``voice``: any text in the answer voice."""

    questions: SpokenSet
    answers: SpokenSet
    voice: SpokenSet
    text: TextTokenizer
    vocab: Vocab
    weave: WeaveConfig
    code_noise: float = 0.0  # probability that an audio code of a question is replaced by a random one
    streams: tuple[str, ...] = STREAMS

    def lengths(self, tasks: Iterable[str] = TASKS) -> dict[str, np.ndarray]:
        """Ids in every example of each of ``tasks``."""
        rng = np.random.default_rng(0)
        asked, spoken = len(self.questions.items), len(self.answers.items) + len(self.voice.items)
        counts = {task: spoken if task == "tts" else asked for task in tasks}
        return {
            task: np.array([len(self.example(task, i, rng)[0]) for i in range(count)]) for task, count in counts.items()
        }

    def example(self, task: str, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """``(ids, loss_mask)`` of one example. Raises ``ValueError`` for an unknown task."""
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
        record = self._spoken(index) if task == "tts" else self._asked(index)
        example = examples.units(task, record, self._coder)[0][0]
        if self.code_noise:
            example = examples.noisy(example, self.vocab, self.code_noise, rng)
        return example if self.streams == STREAMS else examples.with_streams(example, self.vocab, self.streams)

    @functools.cached_property
    def _coder(self) -> examples.Coder:
        return examples.Coder(self.text, self.vocab, self.weave, tag_styles=False)

    def _asked(self, index: int) -> Record:
        item = self.questions.items[index]
        question = Part(item.utterance.text, codes=self._codes(self.questions.audio[index]))
        answer = [Part(item.answer, s, codes=self._codes(self.answers.audio[i])) for s, i in item.spoken]
        return Record(item.id, (Turn("human", (question,)), Turn("assistant", tuple(answer))))

    def _spoken(self, index: int) -> Record:
        known = len(self.answers.items)
        chosen, at = (self.answers, index) if index < known else (self.voice, index - known)
        item = chosen.items[at]
        part = Part(item.utterance.text, item.style, codes=self._codes(chosen.audio[at]))
        return Record(item.id, (Turn("assistant", (part,)),))

    def _codes(self, audio: np.ndarray) -> Codes:
        return Codes(*unweave_audio(audio, self.vocab))


def save_audio(path: str | Path, audio: Sequence[np.ndarray]) -> None:
    """Ragged id sequences to one ``.npz``, in one step."""
    offsets = np.cumsum([0, *(len(a) for a in audio)])
    with atomic.written(path) as part, part.open("wb") as file:
        np.savez_compressed(file, ids=np.concatenate(audio).astype(np.int32), offsets=offsets)


def load_audio(path: str | Path) -> list[np.ndarray]:
    """What ``save_audio`` wrote."""
    with np.load(path) as data:
        ids, offsets = data["ids"], data["offsets"]
    return [ids[a:b] for a, b in itertools.pairwise(offsets)]


def shares(mix: Mapping[str, Any]) -> dict[str, float]:
    """The positive task shares of a mixture; raises ``ValueError`` for an unknown task."""
    unknown = set(mix) - set(TASKS) - {"code_noise", "emphasis", "streams"}
    if unknown:
        raise ValueError(f"unknown tasks {sorted(unknown)} in the mixture; expected some of {', '.join(TASKS)}")
    return {task: share for task, share in mix.items() if task in TASKS and share > 0}
