"""General text for tokenizer, vocoder and text-to-speech training: words, numbers 0-40 and made-up sentences.

No number from 41 to 99 can appear: number words are drawn only by ``number_words`` up to 40, never from the dictionary,
so that two neighbours cannot form a larger number by chance.
"""

from __future__ import annotations

import functools
import random
import re
from pathlib import Path

from aqaa_jax.data.phrasings import ANSWERS
from aqaa_jax.data.questions import TENS, UNITS, number_words

LARGEST_NUMBER = 40
_NUMBER_STEMS = tuple(
    [*TENS, "fourty", "fourti", "fifti", "sixti", "seventi", "eighti", "nineti", "forti", "twenti", "thirti"]
)
_TENS_HUNDREDS = ("hundred", "thousand", "million", "billion")


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


SUBJECTS = _phrases(
    "the teacher,my brother,a small bird,the old man,our neighbor,the captain,a tall woman,the gray cat,"
    "your friend,the engineer,a young child,the farmer"
)
VERBS = _phrases(
    "finds,carries,paints,remembers,follows,cleans,opens,watches,borrows,describes,hides,measures,likes,brings,builds"
)
OBJECTS = _phrases(
    "the letter,a wooden box,the broken chair,some bread,the blue door,a long rope,the newspaper,his umbrella,"
    "the kitchen,a silver coin,the morning train,her shoes,the bridge,a heavy stone,the picture"
)
ENDINGS = _phrases(",today,in the evening,near the lake,before lunch,with great care,once again,at the station")


@functools.cache
def dictionary_words() -> tuple[str, ...]:
    """Plain words of 3-9 letters of the pronouncing dictionary in the pocketsphinx wheel, without number words."""
    from pocketsphinx import get_model_path

    plain = re.compile(r"[a-z]{3,9}")
    path = Path(get_model_path("en-us/cmudict-en-us.dict"))
    words = {line.split(maxsplit=1)[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    return tuple(sorted(w for w in words if plain.fullmatch(w) and not _is_number(w)))


def general_text(rng: random.Random) -> str:
    """One short text: half are random words, the rest numbers, simple sentences and answer-like sentences."""
    kind = rng.random()
    if kind < 0.5:
        return _capital(" ".join(rng.choices(dictionary_words(), k=rng.randint(1, 5))) + ".")
    if kind < 0.65:
        # Forty comes last, so that "forty, nine" is never heard.
        numbers = [rng.randint(0, LARGEST_NUMBER - 1) for _ in range(rng.randint(0, 3))]
        return _capital(", ".join(map(number_words, [*numbers, rng.randint(0, LARGEST_NUMBER)])) + ".")
    if kind < 0.8:
        parts = (rng.choice(SUBJECTS), rng.choice(VERBS), rng.choice(OBJECTS), rng.choice(ENDINGS))
        return _capital(" ".join(p for p in parts if p) + ".")
    carrier = rng.choice(sorted(ANSWERS.values()))
    word, other = rng.choices(dictionary_words(), k=2)
    return carrier.format(a=other, b=number_words(rng.randint(0, LARGEST_NUMBER)) if rng.random() < 0.4 else word)


def _is_number(word: str) -> bool:
    return word.startswith((*_NUMBER_STEMS, *_TENS_HUNDREDS)) or word.rstrip("s") in UNITS


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
