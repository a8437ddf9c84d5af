"""Stages as data: what each task makes of a conversation. Ids and masks are born here and nowhere else.

A *unit* is what is packed as a whole: one example, or the chosen and the rejected example of a preference pair. The
tasks, and the stages of training that mix them (Step-Audio technical report, section 4; AQAA paper, section 3):

========================  ===================================================================================
asr, tts                  every human part to its text; the text of every assistant part to its audio
continuation              every audio part alone, all of it a target
interleaved               the parts of a conversation in turn as text and as audio, all of it a target
text                      the text of a conversation, all of it a target
aqta, tqta                spoken or written question to the written answer
aqtaa, tqtaa              spoken or written question to the woven answer
transcript_first          spoken question to its text, then the woven answer
preference                the answer and the rejected answer to the same question
========================  ===================================================================================

Only the last answer of a conversation carries loss; what came before it is history, as text where there is text.
Where the papers are silent: in plain speech (no assistant turn) ``tts`` speaks the human parts; which parts of an
interleaved document are text alternates and starts by the record's id; a style label is a leading ``(tag)``, as in the
published text-to-speech prompts.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aqaa_jax.config import WeaveConfig
from aqaa_jax.data.records import Part, Record, Turn
from aqaa_jax.tokens import prompt
from aqaa_jax.tokens.interleave import Segment, weave_audio
from aqaa_jax.tokens.prompt import Example, TextEncoder
from aqaa_jax.tokens.vocab import AUDIO_END, AUDIO_START, TokenClass, Vocab

Unit = tuple[Example, ...]

# Shares of tokens by stage. Image data is left out: this system neither hears nor makes images.
STAGES: Mapping[str, Mapping[str, float]] = {
    "pretrain_1": {"continuation": 2, "text": 1},
    "pretrain_2": {"continuation": 1, "interleaved": 1, "text": 1},
    "pretrain_3": {"continuation": 1, "interleaved": 1, "asr": 1, "tts": 1, "text": 3},
    "sft_1": {"aqta": 1, "aqtaa": 1},
    "sft_2": {"aqtaa": 1},
    "dpo": {"preference": 1},
}


class Lacking(ValueError):
    """A record without what a task needs: no error of the record, it is no example of that task."""


class Coder(NamedTuple):
    """What turns records into ids."""

    text: TextEncoder
    vocab: Vocab
    weave: WeaveConfig
    tag_styles: bool = True  # text to speech is told the style

    def audio(self, part: Part) -> np.ndarray:
        """Woven ids. Raises ``Lacking`` without codes or a whole 2:3 group, ``ValueError`` for a code out of range."""
        if part.codes is None:
            raise Lacking("no codes")
        ids = weave_audio(part.codes.linguistic, part.codes.semantic, self.vocab)
        if not len(ids):
            raise Lacking("audio shorter than one group of codes")
        return ids

    def segments(self, parts: Sequence[Part]) -> list[Segment]:
        return [Segment(self.text.encode_span(part.text), self.audio(part)) for part in parts]


def units(task: str, record: Record, coder: Coder) -> list[Unit]:
    """The units of ``task`` in ``record``, at least one.

    Raises ``ValueError`` for an unknown task or a bad record, ``Lacking`` if the record is no example of the task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    return TASKS[task](record, coder)


def shares(stage: str) -> Mapping[str, float]:
    """The task shares of a stage of the papers. Raises ``ValueError`` for an unknown one."""
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}; expected one of {', '.join(STAGES)}")
    return STAGES[stage]


def is_audio(ids: np.ndarray, vocab: Vocab) -> np.ndarray:
    """The audio mask of a preference loss, bool: audio ids and the markers around them.

    The paper blocks the loss of audio tokens and does not say whether markers are among them. They are here: where the
    sound begins and ends is part of the alignment that the loss is to leave alone.
    """
    return vocab.is_audio(ids) | (ids == AUDIO_START) | (ids == AUDIO_END)


def noisy(example: Example, vocab: Vocab, share: float, rng: np.random.Generator) -> Example:
    """``example`` with that share of its heard audio ids (those that are no targets) replaced within their codebook."""
    ids = example.ids.copy()
    for start, size in ((vocab.audio_start, vocab.linguistic), (vocab.semantic_start, vocab.semantic)):
        heard = (ids >= start) & (ids < start + size) & ~example.loss_mask
        hit = np.flatnonzero(heard & (rng.random(len(ids)) < share))
        ids[hit] = start + rng.integers(0, size, len(hit))
    return Example(ids, example.loss_mask)


def with_streams(example: Example, vocab: Vocab, streams: Sequence[str]) -> Example:
    """``example`` with the audio ids of the codebooks ``streams`` only, everything else as it stands.

    Raises ``ValueError`` unless ``streams`` are some of linguistic, semantic.
    """
    kinds = {"linguistic": TokenClass.LINGUISTIC, "semantic": TokenClass.SEMANTIC}
    if not streams or not set(streams) <= set(kinds):
        raise ValueError(f"streams {list(streams)}; expected some of {', '.join(kinds)}")
    left_out = [int(kind) for name, kind in kinds.items() if name not in streams]
    kept = ~np.isin(vocab.classify(example.ids), left_out)
    return Example(example.ids[kept], example.loss_mask[kept])


def _asr(record: Record, coder: Coder) -> list[Unit]:
    parts = _some([p for turn in record.turns if turn.role == "human" for p in turn.parts if p.text and p.codes])
    return [(prompt.asr(coder.audio(part), part.text, coder.text),) for part in parts]


def _tts(record: Record, coder: Coder) -> list[Unit]:
    answers = [turn for turn in record.turns if turn.role == "assistant"]
    parts = _some([p for turn in answers or record.turns for p in turn.parts if p.text and p.codes])
    tag = lambda part: f"({part.style})" if part.style and coder.tag_styles else ""  # noqa: E731
    return [(prompt.tts(tag(part) + part.text, coder.audio(part), coder.text),) for part in parts]


def _continuation(record: Record, coder: Coder) -> list[Unit]:
    parts = _some([p for turn in record.turns for p in turn.parts if p.codes])
    return [(prompt.continuation([coder.audio(part)], coder.text),) for part in parts]


def _interleaved(record: Record, coder: Coder) -> list[Unit]:
    parts = [p for turn in record.turns if turn.role != "system" for p in turn.parts]
    spoken_first = zlib.crc32(record.id.encode()) & 1
    spoken = [bool(p.codes) and (not p.text or (k + spoken_first) % 2 == 1) for k, p in enumerate(parts)]
    if len(set(spoken)) < 2:
        raise Lacking("fewer than two parts to take in turn as text and as audio")
    pieces = [coder.audio(p) if heard else p.text for p, heard in zip(parts, spoken, strict=True)]
    return [(prompt.continuation(pieces, coder.text),)]


def _text(record: Record, coder: Coder) -> list[Unit]:
    texts = [turn.text for turn in record.turns if turn.text]
    if not texts:
        raise Lacking("no text")
    return [(prompt.continuation(["\n".join(texts)], coder.text),)]


class _Exchange(NamedTuple):
    """The last question and answer of a conversation and what came before."""

    system: str
    history: list[prompt.Turn]
    question: Turn
    answer: Turn

    def asked(self, coder: Coder, *, spoken: bool) -> Any:
        """The question as woven ids or as text."""
        if spoken:
            return np.concatenate([coder.audio(part) for part in self.question.parts])
        if not self.question.text:
            raise Lacking("no question text")
        return self.question.text


def _exchange(record: Record, coder: Coder) -> _Exchange:
    turns = list(record.turns)
    system = turns.pop(0).text if turns and turns[0].role == "system" else ""
    if len(turns) < 2 or (turns[-2].role, turns[-1].role) != ("human", "assistant"):
        raise Lacking("no question and answer at the end")
    before = [
        prompt.Turn(turn.role, turn.text or np.concatenate([coder.audio(p) for p in turn.parts])) for turn in turns[:-2]
    ]
    return _Exchange(system, before, turns[-2], turns[-1])


def _written(record: Record, coder: Coder, *, spoken: bool) -> list[Unit]:
    x = _exchange(record, coder)
    return [(_answered(x, x.asked(coder, spoken=spoken), x.answer.parts, coder, woven=False),)]


def _woven(record: Record, coder: Coder, *, spoken: bool, quote: bool = False) -> list[Unit]:
    x = _exchange(record, coder)
    transcript = x.asked(coder, spoken=False) if quote else None
    return [(_answered(x, x.asked(coder, spoken=spoken), x.answer.parts, coder, woven=True, transcript=transcript),)]


def _preference(record: Record, coder: Coder) -> list[Unit]:
    if not record.rejected:
        raise Lacking("no rejected answer")
    x = _exchange(record, coder)
    question = x.asked(coder, spoken=all(part.codes for part in x.question.parts))
    woven = all(part.codes for part in (*x.answer.parts, *record.rejected))
    return [tuple(_answered(x, question, parts, coder, woven=woven) for parts in (x.answer.parts, record.rejected))]


def _answered(
    x: _Exchange, question: Any, parts: Sequence[Part], coder: Coder, *, woven: bool, transcript: str | None = None
) -> Example:
    rest = {"system": x.system, "history": x.history}
    text = Turn("assistant", tuple(parts)).text
    if not text:
        raise Lacking("no answer text")
    if not woven:
        return prompt.written_answer(question, text, coder.text, **rest)
    segments = coder.segments(parts)
    return prompt.spoken_answer(question, segments, coder.text, coder.weave, transcript=transcript, **rest)


def _some(parts: list[Part]) -> list[Part]:
    if not parts:
        raise Lacking("no part with what the task needs")
    return parts


TASKS: Mapping[str, Callable[[Record, Coder], list[Unit]]] = {
    "asr": _asr,
    "tts": _tts,
    "continuation": _continuation,
    "interleaved": _interleaved,
    "text": _text,
    "tqta": lambda record, coder: _written(record, coder, spoken=False),
    "aqta": lambda record, coder: _written(record, coder, spoken=True),
    "tqtaa": lambda record, coder: _woven(record, coder, spoken=False),
    "aqtaa": lambda record, coder: _woven(record, coder, spoken=True),
    "transcript_first": lambda record, coder: _woven(record, coder, spoken=True, quote=True),
    "preference": _preference,
}
