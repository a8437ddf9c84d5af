"""The domain of the pocket model: small questions, their phrasings and their answers, as pure data.

Ten families: addition, subtraction, numbers (after / before), weekdays, months, opposites, capitals, colors,
comparison and repeat. The style (how to answer) is separate from the content: any phrasing takes a style request in
front or behind. Every answer is one full sentence; questions with the same answer share it word for word.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from aqaa_jax.data.phrasings import ANSWERS, CHANGE_REQUESTS, MANNERS, PHRASINGS, STYLE_REQUESTS

STYLES = ("neutral", "slow", "fast", "high", "low")
FAMILIES = (
    "addition",
    "subtraction",
    "numbers",
    "weekdays",
    "months",
    "opposites",
    "capitals",
    "colors",
    "comparison",
    "repeat",
)
HELD_OUT_SEED = 7
HELD_OUT_SHARE = 0.1


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


UNITS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")

WEEKDAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")
OPPOSITES = (
    "hot cold,big small,up down,left right,day night,open closed,wet dry,fast slow,happy sad,old new,high low,"
    "long short,black white,full empty,early late,hard soft,rich poor,strong weak,light dark,love hate,"
    "start finish,inside outside,push pull,true false,clean dirty"
)
CAPITALS = (
    "France:Paris,Italy:Rome,Spain:Madrid,Germany:Berlin,Japan:Tokyo,Turkey:Ankara,Russia:Moscow,Egypt:Cairo,"
    "Greece:Athens,Cuba:Havana,Canada:Ottawa,Peru:Lima,Kenya:Nairobi,Norway:Oslo,Denmark:Copenhagen,"
    "Portugal:Lisbon,Ireland:Dublin,Poland:Warsaw,Austria:Vienna,England:London"
)
COLORS = (
    "grass:green,the sky:blue,snow:white,coal:black,a lemon:yellow,blood:red,a carrot:orange,chocolate:brown,"
    "an elephant:gray,a plum:purple"
)
REPEATS = _words(
    "apple water music garden window doctor tiger pencil mountain river table bicycle butter camera dragon "
    "engine family guitar hospital island"
)


@dataclass(frozen=True)
class Question:
    """One question's content: its ``family``, a ``key`` unique in the domain, its wordings and its answer."""

    family: str
    key: str
    phrasings: tuple[str, ...]
    answer: str


def number_words(number: int) -> str:
    """0-99 in words: 31 -> "thirty one" (no hyphen, as it is heard)."""
    if not 0 <= number <= 99:
        raise ValueError(f"number {number} is not between 0 and 99")
    if number < 20:
        return UNITS[number]
    ten = TENS[number // 10 - 2]
    return f"{ten} {UNITS[number % 10]}" if number % 10 else ten


def unseen_numbers() -> tuple[str, ...]:
    """The numbers 41-99 in words: in no text that anything is trained on, so an evaluation set for resynthesis."""
    return tuple(number_words(n) for n in range(41, 100))


def unseen_number_sentences() -> tuple[str, ...]:
    """``unseen_numbers()`` in the answer sentence of numbers: what resynthesis is judged on (a closed set of 59)."""
    return tuple(ANSWERS["number"].format(a="", b=number) for number in unseen_numbers())


@functools.cache
def questions() -> tuple[Question, ...]:
    """All questions of the domain in a fixed order."""
    return tuple(_arithmetic() + _sequences() + _facts() + _comparisons())


@functools.cache
def held_out() -> frozenset[str]:
    """Keys of the questions never used in training: a tenth of the arithmetic pairs and of the compared pairs.

    Pairs are ranked by a seeded hash and the first tenth of each family is withheld with all its phrasings: a+b
    together with b+a, and a compared pair in both orders for both larger and smaller. A pair that is the only way to
    one of the answers stays in training, since nothing could teach that sentence.
    """
    keys: set[str] = set()
    for family in ("addition", "subtraction", "comparison"):
        pairs: dict[str, list[Question]] = {}
        for question in questions():
            if question.family == family:
                pairs.setdefault(_pair(question), []).append(question)
        ranked = sorted(pairs, key=lambda pair: hashlib.sha256(f"{HELD_OUT_SEED} {family} {pair}".encode()).digest())
        kept, wanted = 0, round(HELD_OUT_SHARE * len(pairs))
        for pair in ranked:
            if kept == wanted:
                break
            trial = keys | {q.key for q in pairs[pair]}
            if {q.answer for q in questions() if q.key not in trial} == set(answers()):
                keys, kept = trial, kept + 1
    return frozenset(keys)


def training_questions() -> tuple[Question, ...]:
    return tuple(q for q in questions() if q.key not in held_out())


def new_questions() -> tuple[Question, ...]:
    return tuple(q for q in questions() if q.key in held_out())


@functools.cache
def answers() -> tuple[str, ...]:
    """The distinct answer sentences, sorted: the judge's closed grammar. Their order is the answer id."""
    return tuple(sorted({q.answer for q in questions()}))


def styled(text: str, style: str, request: int) -> str:
    """The spoken question: ``text`` with the ``request``-th way of asking for ``style``."""
    if style not in STYLE_REQUESTS:
        raise ValueError(f"style {style!r} is none of {', '.join(STYLES)}")
    pattern = STYLE_REQUESTS[style][request % len(STYLE_REQUESTS[style])]
    text = pattern.format(text if pattern.startswith("{}") else _inside(text))
    return text[0].upper() + text[1:]


def twice(text: str, style: str, then: str, request: int) -> str:
    """The spoken question ``text`` with the ``request``-th way of asking for the answer in one style, then another."""
    wrong = [s for s in (style, then) if s not in MANNERS]
    if wrong or style == then:
        raise ValueError(f"styles {style!r}, then {then!r}; expected two of {', '.join(MANNERS)}")
    pattern = CHANGE_REQUESTS[request % len(CHANGE_REQUESTS)]
    # Behind a comma the question goes on in the same sentence.
    return pattern.format(a=MANNERS[style], b=MANNERS[then], q=_inside(text) if ", {q}" in pattern else text)


def _inside(text: str) -> str:
    """A question as it goes on inside a sentence."""
    return text if text.split()[0].rstrip("?,.") in _NAMES else text[0].lower() + text[1:]


_NAMES = frozenset([*WEEKDAYS, *MONTHS]) | frozenset(pair.split(":")[0] for pair in CAPITALS.split(","))


def _pair(question: Question) -> str:
    """The unordered pair of a commutative question, the ordered one of a subtraction."""
    if question.family == "subtraction":
        return question.key
    words = question.key.split()
    a, b = int(words[-3]), int(words[-1])
    return f"{min(a, b)} {max(a, b)}"


def _make(family: str, kind: str, key: str, answer: str, filling: str, a: str, b: str = "") -> Question:
    texts = (p.format(a=a, b=b) for p in PHRASINGS[kind])
    return Question(family, key, tuple(t[0].upper() + t[1:] for t in texts), ANSWERS[answer].format(a=a, b=filling))


def _arithmetic() -> list[Question]:
    out = []
    for a in range(13):
        for b in range(13):
            words = number_words(a), number_words(b)
            out.append(_make("addition", "addition", f"{a} + {b}", "sum", number_words(a + b), *words))
    for a in range(13):
        for b in range(a + 1):
            words = number_words(a), number_words(b)
            out.append(_make("subtraction", "subtraction", f"{a} - {b}", "sum", number_words(a - b), *words))
    return out


def _sequences() -> list[Question]:
    out = []
    for a in range(31):
        word = number_words(a)
        out.append(_make("numbers", "after number", f"after {a}", "number", number_words(a + 1), word))
        if a > 0:
            out.append(_make("numbers", "before number", f"before {a}", "number", number_words(a - 1), word))
    for family, kind, names in (("weekdays", "weekday", WEEKDAYS), ("months", "month", MONTHS)):
        for k, name in enumerate(names):
            after, before = names[(k + 1) % len(names)], names[k - 1]
            out.append(_make(family, f"after {kind}", f"after {name}", kind, after, name))
            out.append(_make(family, f"before {kind}", f"before {name}", kind, before, name))
    return out


def _facts() -> list[Question]:
    out = []
    for pair in OPPOSITES.split(","):
        one, other = pair.split()
        out.append(_make("opposites", "opposites", f"opposite {one}", "opposites", other, one))
        out.append(_make("opposites", "opposites", f"opposite {other}", "opposites", one, other))
    for family, table in (("capitals", CAPITALS), ("colors", COLORS)):
        for pair in table.split(","):
            thing, value = pair.split(":")
            out.append(_make(family, family, f"{family} {thing}", family, value, thing))
    for word in REPEATS:
        out.append(_make("repeat", "repeat", f"repeat {word}", "repeat", word, word))
    return out


def _comparisons() -> list[Question]:
    out = []
    for kind, choose in (("larger", max), ("smaller", min)):
        for a in range(1, 13):
            for b in range(1, 13):
                if a != b:
                    words = number_words(a), number_words(b)
                    key = f"{kind} {a} or {b}"
                    out.append(_make("comparison", kind, key, kind, number_words(choose(a, b)), *words))
    return out


def by_family(pool: Sequence[Question]) -> dict[str, list[Question]]:
    """The questions of ``pool`` grouped by family, families in the domain's order, empty ones left out."""
    groups: dict[str, list[Question]] = {family: [] for family in FAMILIES}
    for question in pool:
        groups[question.family].append(question)
    return {family: group for family, group in groups.items() if group}
