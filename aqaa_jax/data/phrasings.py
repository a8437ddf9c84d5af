"""How the questions of the domain are worded, how a style is asked for, and the sentences that answer."""

from __future__ import annotations

# How a style is asked for. {} is the question: half in front, half behind.
STYLE_REQUESTS = {
    "neutral": ("{}",),
    "slow": ("Answer slowly, {}", "{} Answer slowly.", "Please answer slowly, {}", "{} Please answer slowly."),
    "fast": ("Answer quickly, {}", "{} Answer quickly.", "Please answer quickly, {}", "{} Please answer quickly."),
    "high": ("Answer in a high voice, {}", "{} Answer in a high voice.", "In a high voice, {}", "{} Use a high voice."),
    "low": ("Answer in a low voice, {}", "{} Answer in a low voice.", "In a low voice, {}", "{} Use a low voice."),
}

# How an answer is asked for twice, in two styles; {a} and {b} are of MANNERS, {q} is the question.
MANNERS = {"slow": "slowly", "fast": "quickly", "high": "in a high voice", "low": "in a low voice"}
CHANGE_REQUESTS = (
    "Answer twice, first {a}, then {b}. {q}",
    "First {a} and then {b}, {q}",
    "{q} Answer {a}, then {b}.",
    "{q} Say it {a} and again {b}.",
)

PHRASINGS = {
    "addition": (
        "What is {a} plus {b}?",
        "How much is {a} plus {b}?",
        "Add {a} and {b}.",
        "{a} plus {b} equals what?",
        "Tell me the sum of {a} and {b}.",
        "What do {a} and {b} make together?",
    ),
    "subtraction": (
        "What is {a} minus {b}?",
        "How much is {a} minus {b}?",
        "Subtract {b} from {a}.",
        "{a} minus {b} equals what?",
        "Take {b} away from {a}.",
        "What is left of {a} without {b}?",
    ),
    "after number": (
        "What number comes after {a}?",
        "What comes right after {a}?",
        "Which number follows {a}?",
        "Tell me the number after {a}.",
        "Count one up from {a}.",
    ),
    "before number": (
        "What number comes before {a}?",
        "What comes right before {a}?",
        "Which number precedes {a}?",
        "Tell me the number before {a}.",
        "Count one down from {a}.",
    ),
    "after weekday": (
        "What day comes after {a}?",
        "Which day follows {a}?",
        "Tell me the day after {a}.",
        "If today is {a}, what is tomorrow?",
    ),
    "before weekday": (
        "What day comes before {a}?",
        "Which day precedes {a}?",
        "Tell me the day before {a}.",
        "If today is {a}, what was yesterday?",
    ),
    "after month": (
        "What month comes after {a}?",
        "Which month follows {a}?",
        "Tell me the month after {a}.",
        "When {a} ends, which month begins?",
    ),
    "before month": (
        "What month comes before {a}?",
        "Which month precedes {a}?",
        "Tell me the month before {a}.",
        "When {a} begins, which month ends?",
    ),
    "opposites": (
        "What is the opposite of {a}?",
        "Tell me the opposite of {a}.",
        "Which word means the reverse of {a}?",
        "{a} is the opposite of what?",
        "Name the opposite of {a}.",
    ),
    "capitals": (
        "What is the capital of {a}?",
        "Which city is the capital of {a}?",
        "Tell me the capital of {a}.",
        "Do you know the capital of {a}?",
        "{a} has which capital city?",
    ),
    "colors": (
        "What color is {a}?",
        "Which color does {a} have?",
        "Tell me the color of {a}.",
        "Do you know the color of {a}?",
        "Name the color of {a}.",
    ),
    "larger": (
        "Which is larger, {a} or {b}?",
        "Which number is bigger, {a} or {b}?",
        "Tell me the larger one, {a} or {b}.",
        "What is the bigger number of {a} and {b}?",
        "Is {a} or {b} more?",
    ),
    "smaller": (
        "Which is smaller, {a} or {b}?",
        "Which number is lower, {a} or {b}?",
        "Tell me the smaller one, {a} or {b}.",
        "What is the lower number of {a} and {b}?",
        "Is {a} or {b} less?",
    ),
    "repeat": (
        "Repeat after me, {a}.",
        "Say the word {a}.",
        "Please repeat {a}.",
        "Can you say {a}?",
        "Say {a} back to me.",
    ),
}

# {b} is what was asked for, {a} what it was asked about. The word that matters is followed by another word or comes
# with its partner: the judge (and a listener) tells a short word apart better there than at the very end.
ANSWERS = {
    "sum": "The answer is {b} exactly.",
    "number": "The number {b} is correct.",
    "weekday": "The day is {b}.",
    "month": "The month is {b}.",
    "opposites": "The opposite of {a} is {b}.",
    "capitals": "The capital is {b}.",
    "colors": "The color is {b}.",
    "larger": "The larger one is {b} here.",
    "smaller": "The smaller one is {b} here.",
    "repeat": "You said {b}.",
}
