"""The spoken sets of the pocket model: which utterances there are, and their audio, made once and kept on disk.

A set is a list of ``Item``; it is a pure function of its arguments, and the first n items of a longer set are the
shorter one. ``render`` speaks a set into shards of a cache folder and reads them back lazily. Audio is stored as
int16; questions at 16 kHz (what the tokenizers hear), answers at 16 kHz and at 22.05 kHz (what the vocoder makes).
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, replace

from aqaa_jax.data import voices
from aqaa_jax.data.espeak import Utterance
from aqaa_jax.data.phrasings import CHANGE_REQUESTS, STYLE_REQUESTS
from aqaa_jax.data.questions import (
    STYLES,
    Question,
    answers,
    by_family,
    new_questions,
    styled,
    training_questions,
    twice,
)
from aqaa_jax.data.words import general_text

TAIL_SECONDS = 0.12  # silence behind a tokenized answer, so that its last whole 2:3 group holds its last sound
CHANGING_SEED = 1000003  # added to a seed: questions other than those asked plainly
SPLITS = ("train", "new_voices", "new_questions")


@dataclass(frozen=True)
class Item:
    """One utterance of a set. For questions the last fields say what was asked and which answer is right.

    ``answer_id`` indexes ``answer_utterances()``, ``question`` is the question's key, ``text`` of the utterance is
    the transcript. With ``then``, a style, the answer is to be said again in it.
    """

    id: str
    utterance: Utterance
    family: str = ""
    question: str = ""
    phrasing: int = -1
    style: str = "neutral"
    answer: str = ""
    answer_id: int = -1
    then: str = ""

    @property
    def spoken(self) -> list[tuple[str, int]]:
        """(style, answer id) of every time the answer is said."""
        return [(style, answer_id(self.answer, style)) for style in (self.style, self.then) if style]


def answer_id(answer: str, style: str) -> int:
    """Index of a sentence spoken in a style among ``answer_utterances()``."""
    return _answer_index()[answer] * len(STYLES) + STYLES.index(style)


def answer_utterances() -> list[Item]:
    """Every answer sentence in every style, one deterministic rendering each, in the order of ``answer_id``."""
    out = []
    for sentence in answers():
        for style in STYLES:
            k = answer_id(sentence, style)
            out.append(Item(f"answer-{k:04d}", _answering(sentence, style), style=style, answer=sentence, answer_id=k))
    return out


def question_utterances(
    n: int, seed: int, split: str = "train", style_share: float = 0.25, balance: float = 0.0, voices_of: str = ""
) -> list[Item]:
    """``n`` spoken questions: a family, then a question, a phrasing, a style, a voice, a rate and a pitch.

    ``split``: "train"; "new_voices", training questions in held-out voices at held-out rates and pitches;
    "new_questions", held-out questions in training voices. ``voices_of`` ("train" or "new") overrides who speaks.
    ``style_share`` of the questions ask for one of the four styles. A family is drawn in proportion to its size to
    the power ``balance``: 0 makes all families equally frequent.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    rng = random.Random(f"questions {seed} {split}")
    groups = by_family(new_questions() if split == "new_questions" else training_questions())
    families = list(groups)
    weights = [len(groups[f]) ** balance for f in families]
    new = (voices_of or ("new" if split == "new_voices" else "train")) == "new"
    out = []
    for k in range(n):
        family = rng.choices(families, weights)[0]
        question: Question = rng.choice(groups[family])
        phrasing = rng.randrange(len(question.phrasings))
        style = rng.choice(STYLES[1:]) if rng.random() < style_share else "neutral"
        text = styled(question.phrasings[phrasing], style, rng.randrange(len(STYLE_REQUESTS[style])))
        out.append(
            Item(
                f"{split}-{seed}-{k:06d}",
                _anyone(text, rng, new),
                family,
                question.key,
                phrasing,
                style,
                question.answer,
                answer_id(question.answer, style),
            )
        )
    return out


def changing_utterances(n: int, seed: int, split: str = "train") -> list[Item]:
    """``n`` spoken questions, as ``question_utterances``, that ask for the answer twice, in two of the four styles."""
    asked = question_utterances(n, seed + CHANGING_SEED, split, style_share=0.0)
    rng = random.Random(f"changing {seed} {split}")
    out = []
    for k, item in enumerate(asked):
        style, then = rng.sample(STYLES[1:], 2)
        text = twice(item.utterance.text, style, then, rng.randrange(len(CHANGE_REQUESTS)))
        changed = replace(item, id=f"changing-{split}-{seed}-{k:06d}", utterance=replace(item.utterance, text=text))
        out.append(replace(changed, style=style, then=then, answer_id=answer_id(item.answer, style)))
    return out


def codec_utterances(n: int, seed: int, question_share: float = 0.4) -> list[Item]:
    """Many voices for the tokenizers: ``question_share`` training questions, the rest general text."""
    rng = random.Random(f"codec {seed}")
    pool = training_questions()
    out = []
    for k in range(n):
        if rng.random() < question_share:
            style = rng.choice(STYLES)
            text = styled(rng.choice(rng.choice(pool).phrasings), style, rng.randrange(4))
        else:
            text = general_text(rng)
        out.append(Item(f"codec-{seed}-{k:06d}", _anyone(text, rng, new=False)))
    return out


def voice_utterances(n: int, seed: int, style_share: float = 0.4) -> list[Item]:
    """General text in the answer voice for vocoder and text-to-speech training, ``style_share`` in the four styles."""
    rng = random.Random(f"voice {seed}")
    out = []
    for k in range(n):
        style = rng.choice(STYLES[1:]) if rng.random() < style_share else "neutral"
        out.append(Item(f"voice-{seed}-{k:06d}", _answering(general_text(rng), style), style=style))
    return out


def spoken_in_answer_voice(texts: list[str], style: str = "neutral") -> list[Item]:
    """Any texts in the answer voice, for example ``unseen_numbers()`` for evaluation."""
    return [Item(f"text-{style}-{k:06d}", _answering(text, style), style=style) for k, text in enumerate(texts)]


@functools.cache
def _answer_index() -> dict[str, int]:
    return {sentence: k for k, sentence in enumerate(answers())}


def _answering(text: str, style: str) -> Utterance:
    rate, pitch = voices.ANSWER_STYLES[style]
    return Utterance(text, voices.ANSWER_VOICE, rate, pitch)


def _anyone(text: str, rng: random.Random, new: bool) -> Utterance:
    voice = rng.choice(voices.NEW_VOICES if new else voices.TRAINING_VOICES)
    rate = rng.choice(voices.NEW_RATES if new else voices.TRAINING_RATES)
    pitch = rng.choice(voices.NEW_PITCHES if new else voices.TRAINING_PITCHES)
    return Utterance(text, voice, rate, pitch, seed=rng.randint(1, 9999))
