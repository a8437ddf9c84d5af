"""The pocket sets: held-out spoken questions, and each faculty of the model alone.

The domain is closed, so the recogniser is told which sentences are possible. Beside the two splits of spoken questions
stand the same questions for *hearing* (write down what was asked) and *thinking* (answer it written), requests to
speak in a certain way, the codec alone (true speech through tokens and back), and shuffled tokens, which must not be
understood.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from aqaa_jax.data import corpus
from aqaa_jax.data.questions import answers, questions, unseen_number_sentences
from aqaa_jax.data.rendering import Clips, render
from aqaa_jax.dsp import wav as wavs
from aqaa_jax.evaluation.cases import Case, CaseSet, Turn

SPLITS = ("new_voices", "new_questions")
ANSWERS, NUMBERS = "answers", "unseen_numbers"  # the two closed domains
ASKED, SPOKEN = 16000, 22050  # rates of questions and of answers


class PocketSets:
    """Cases over a cache folder of rendered speech; ``seed`` is none that training uses."""

    def __init__(self, cache: str | Path, *, questions: int = 200, seed: int = 2024, transcript_first: bool = False):
        self.cache, self.questions, self.seed = Path(cache), questions, seed
        self.task = "transcript_first" if transcript_first else "aqtaa"
        self.references = corpus.answer_utterances()
        self._clips = render(self.references, self.cache, (ASKED, SPOKEN))

    def all(self, *, pairs: int = 60, limit: int = 100) -> CaseSet:
        """Every case: ``pairs`` requests for a way of speaking, ``limit`` answers through the codec."""
        cases = [case for split in SPLITS for case in self.split(split)]
        cases += [*self.voice_control(pairs), *self.codec(limit)]
        return CaseSet("pocket", tuple(cases), {ANSWERS: answers(), NUMBERS: unseen_number_sentences()})

    def split(self, split: str) -> Iterator[Case]:
        """Spoken questions, and the same for hearing and thinking alone."""
        items = corpus.question_utterances(self.questions, self.seed, split)
        asked = self._recordings(items, render(items, self.cache), ASKED)
        for item, recording in zip(items, asked, strict=True):
            case = self._question(item, recording, split)
            yield case
            text = item.utterance.text
            hears = replace(case, id=f"{case.id}-hearing", group=f"{split}, hearing", task="asr", speak=False)
            yield replace(hears, answer=text, answer_audio="", tags={})
            thinks = replace(case, id=f"{case.id}-thinking", group=f"{split}, thinking", task="tqtaa", speak=False)
            yield replace(thinks, turns=(Turn(text=text),), answer_audio="", tags={})

    def voice_control(self, pairs: int) -> Iterator[Case]:
        """Requests to speak slowly, quickly, high or low, and the same questions asked plainly by the same voice."""
        asked = corpus.question_utterances(pairs * 8, self.seed + 1, "new_voices")
        styled = [item for item in asked if item.style != "neutral"][:pairs]
        plain = [_plain(item) for item in styled]
        heard = [self._recordings(items, render(items, self.cache), ASKED) for items in (styled, plain)]
        for ours, neutral, *recordings in zip(styled, plain, *heard, strict=True):
            base = self._question(neutral, recordings[1], "voice control, plain")
            yield base
            case = self._question(ours, recordings[0], "voice control")
            yield replace(case, compared_to=base.id, change=ours.style, tags={"style": ours.style})

    def changing(self, split: str) -> Iterator[Case]:
        """Questions that ask for the answer twice, in two ways of speaking; the answer is what each half should say."""
        items = corpus.changing_utterances(self.questions, self.seed, split)
        asked = self._recordings(items, render(items, self.cache), ASKED)
        for item, recording in zip(items, asked, strict=True):
            case = self._question(item, recording, f"{split}, changing")
            tags = {"family": item.family, "style": item.style, "then": item.then}
            yield replace(case, answer_audio="", domain="", tags=tags)

    def codec(self, limit: int) -> Iterator[Case]:
        """True speech through the tokens and back: known answers, numbers that no training heard, and controls."""
        chosen = range(0, len(self.references), max(1, len(self.references) // limit))[:limit]
        for i in chosen:
            yield self._resynthesis(self.references[i], self._clips, i, "resynthesis, known answers", ANSWERS)
        numbers = corpus.spoken_in_answer_voice(list(unseen_number_sentences()))
        clips = render(numbers, self.cache, (ASKED, SPOKEN))
        for i, item in enumerate(numbers):
            yield self._resynthesis(item, clips, i, "resynthesis, unseen numbers", NUMBERS)
        asked = corpus.question_utterances(self.questions, self.seed, "new_voices")[:limit]
        for number, item in enumerate(asked):
            spoken = self.references[item.answer_id]
            for task in ("shuffled_tokens", "shuffled_groups"):
                case = self._resynthesis(spoken, self._clips, item.answer_id, f"control, {task}", ANSWERS)
                yield replace(case, id=f"{task}-{number:03d}", task=task, answer_audio="")

    def _question(self, item: corpus.Item, recording: Path, group: str) -> Case:
        return Case(
            id=item.id,
            turns=(Turn(text=item.utterance.text, audio=str(recording)),),
            answer=item.answer,
            answer_audio=str(self._recording(self.references[item.answer_id], self._clips, item.answer_id, SPOKEN)),
            group=group,
            task=self.task,
            domain=ANSWERS,
            tags={"family": item.family, "style": item.style},
        )

    def _resynthesis(self, item: corpus.Item, clips: Clips, index: int, group: str, domain: str) -> Case:
        said = item.utterance.text
        source = self._recording(item, clips, index, ASKED)
        reference = str(self._recording(item, clips, index, SPOKEN))
        turns = (Turn(text=said, audio=str(source)),)
        return Case(f"{item.id}-codec", turns, said, reference, group, "resynthesis", domain=domain)

    def _recordings(self, items: Sequence[corpus.Item], clips: Clips, rate: int) -> list[Path]:
        return [self._recording(item, clips, i, rate) for i, item in enumerate(items)]

    def _recording(self, item: corpus.Item, clips: Clips, index: int, rate: int) -> Path:
        """The clip as a wav file, named by what is said and how."""
        key = hashlib.sha256(f"{item.utterance} {rate}".encode()).hexdigest()[:16]
        path = (self.cache / "wav" / f"{item.id}-{key}.wav").absolute()
        if not path.exists():
            wavs.write(path, clips[index].wavs[rate], rate)
        return path


def _plain(item: corpus.Item) -> corpus.Item:
    """The same question by the same voice without its style request."""
    question = next(q for q in questions() if q.key == item.question)
    spoken = replace(item.utterance, text=question.phrasings[item.phrasing])
    neutral = corpus.answer_id(item.answer, "neutral")
    return replace(item, id=f"{item.id}-plain", utterance=spoken, style="neutral", answer_id=neutral)
