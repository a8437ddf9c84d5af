"""The domain: enough questions, right answers, and what is held out."""

import re

import pytest

from aqaa_jax.data.questions import (
    FAMILIES,
    STYLES,
    TENS,
    UNITS,
    answers,
    by_family,
    held_out,
    new_questions,
    number_words,
    questions,
    styled,
    training_questions,
    twice,
    unseen_number_sentences,
    unseen_numbers,
)


def value(words: str) -> int:
    """The number that English number words say: an independent inverse of ``number_words``."""
    return sum(UNITS.index(w) if w in UNITS else 20 + 10 * TENS.index(w) for w in words.split())


def find(key: str):
    return next(q for q in questions() if q.key == key)


def test_size_of_the_domain():
    assert len(questions()) == len({q.key for q in questions()}) >= 600
    assert {q.family for q in questions()} == set(FAMILIES)
    assert all(4 <= len(q.phrasings) <= 8 for q in questions())
    phrasings = [p for q in questions() for p in q.phrasings]
    assert len(set(phrasings)) == len(phrasings)
    assert 150 <= len(answers()) <= 220
    assert len(answers()) == len({q.answer for q in questions()})


def test_number_words():
    assert [number_words(n) for n in (0, 13, 20, 31, 99)] == ["zero", "thirteen", "twenty", "thirty one", "ninety nine"]
    assert [value(number_words(n)) for n in range(100)] == list(range(100))
    with pytest.raises(ValueError, match="100"):
        number_words(100)


def test_arithmetic_and_comparisons_are_right():
    number = {number_words(n): n for n in range(32)}
    for q in questions():
        if q.family in ("addition", "subtraction"):
            assert re.fullmatch(r"The answer is (.+) exactly\.", q.answer)
            said = number[q.answer.removeprefix("The answer is ").removesuffix(" exactly.")]
            assert said == eval(q.key) >= 0
        if q.family == "comparison":
            kind, a, _, b = q.key.split()
            said = number[re.search(r"is (.+) here", q.answer).group(1)]
            assert said == {"larger": max, "smaller": min}[kind](int(a), int(b))
            assert q.answer.startswith(f"The {kind} one")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("after 30", "thirty one"),
        ("before 1", "zero"),
        ("after Sunday", "Monday"),
        ("before January", "December"),
        ("opposite cold", "hot"),
        ("capitals Japan", "Tokyo"),
        ("colors grass", "green"),
        ("repeat island", "island"),
    ],
)
def test_some_answers(key, said):
    assert said in find(key).answer


def test_phrasings_name_what_is_asked():
    for phrasing in find("7 + 5").phrasings:
        assert {"seven", "five"} <= set(re.findall("[a-z]+", phrasing.lower()))
    # The order of a subtraction is kept in meaning: only "from" puts the smaller number first.
    for phrasing in find("9 - 4").phrasings:
        text = phrasing.lower()
        assert (text.index("four") < text.index("nine")) == ("from" in text)


def test_a_tenth_is_held_out_and_nothing_gives_it_away():
    kept = {q.key for q in training_questions()}
    assert kept.isdisjoint(held_out()) and len(kept) + len(held_out()) == len(questions())
    assert {q.family for q in new_questions()} == {"addition", "subtraction", "comparison"}
    for family, group in by_family(new_questions()).items():
        share = len(group) / len(by_family(questions())[family])
        assert 0.07 < share < 0.13
    for key in held_out():
        a, sign, b = key.split()[-3:]
        if sign == "+":
            assert f"{b} + {a}" in held_out()
        if sign == "or":
            for kind in ("larger", "smaller"):
                assert {f"{kind} {a} or {b}", f"{kind} {b} or {a}"} <= held_out()
    assert {q.answer for q in training_questions()} == set(answers())
    training_texts = {p for q in training_questions() for p in q.phrasings}
    assert training_texts.isdisjoint(p for q in new_questions() for p in q.phrasings)


def test_styles_are_asked_for_in_front_or_behind():
    words = {"slow": "slowly", "fast": "quickly", "high": "high voice", "low": "low voice"}
    for style, word in words.items():
        texts = {styled("What is one plus two?", style, k) for k in range(4)}
        assert len(texts) == 4 and all(word in t and "hat is one plus two?" in t for t in texts)
    assert styled("Monday is what?", "slow", 0) == "Answer slowly, Monday is what?"
    assert styled("Add one and two.", "slow", 0) == "Answer slowly, add one and two."
    assert styled("Add one and two.", "neutral", 3) == "Add one and two."
    assert STYLES[0] == "neutral"
    with pytest.raises(ValueError, match="loud"):
        styled("Hello.", "loud", 0)


def test_unseen_numbers():
    assert len(unseen_numbers()) == 59
    assert (unseen_numbers()[0], unseen_numbers()[-1]) == ("forty one", "ninety nine")
    assert unseen_number_sentences()[0] == "The number forty one is correct."
    assert set(unseen_number_sentences()).isdisjoint(answers())


def test_an_answer_is_asked_for_in_two_styles():
    assert (
        twice("What color is snow?", "slow", "high", 1) == "First slowly and then in a high voice, what color is snow?"
    )
    assert twice("Monday is when?", "low", "fast", 1) == "First in a low voice and then quickly, Monday is when?"
    assert twice("What color is snow?", "low", "fast", 2) == "What color is snow? Answer in a low voice, then quickly."
    for styles in (("slow", "slow"), ("neutral", "slow")):
        with pytest.raises(ValueError, match="expected two of slow, fast, high, low"):
            twice("What?", *styles, 0)
