"""Who speaks: the answer voice and its styles, the training voices, and the held-out voices, rates and pitches.

How the voices were chosen. Every variant of espeak-ng that is not a whisper, robot or joke said the same 30 answer
sentences in American English (150 words per minute, pitch 50), and the judge counted how many it recognised. 45
variants of 81 with at least 18 of 30 are intelligible enough; they speak here, with other accents added to some. The
judge's model is American, so British, Scottish and Caribbean accents were taken on their maturity in espeak-ng.

The held-out speakers come from the middle half of that ranking, without those that have a sibling (same name, other
number) or a near twin in sound (root mean square distance of mean log-mel spectra below 0.5 nepers); a seeded hash
took five of the seven left. They scored 29, 21, 30, 26 and 22: mean 25.6, against 25.7 for the training variants
(median 26 against 29, so not the easy ones). The last of them, f3, had been heard by the tokenizers of a first training
run before this choice was made; Storm (22 as well, never trained on) speaks in its place. A held-out variant speaks in
no accent in training. Held-out rates and pitches lie between those of training.
"""

from __future__ import annotations

ANSWER_VOICE = "en-us+f2"
# How the answer voice delivers each style: words per minute, pitch 0-100.
ANSWER_STYLES = {
    "neutral": (150, 50),
    "slow": (115, 50),
    "fast": (190, 50),
    "high": (150, 75),
    "low": (150, 20),
}

# Variants by accent; "-" is the accent's own voice.
_SPEAKERS = {
    "en-us": (
        "- f1 f2 f4 f5 m1 m2 m3 m4 m5 m6 m7 Reed adam benjamin edward edward2 klatt klatt2 klatt3 klatt4 klatt5 klatt6 "
        "mike2 Diogo Henrique Hugo michel miguel john Gene anika Alex Denis aunty Nguyen ed linda pablo steph2"
    ),
    "en-us-nyc": "- f2 m3 edward",
    "en": "- f1 m2 klatt4 Hugo",
    "en-gb-x-rp": "- f4 m5 Reed",
    "en-gb-scotland": "- f5 m6",
    "en-029": "- f1 m4",
    "en-gb-x-gbclan": "-",
    "en-gb-x-gbcwmd": "-",
}
TRAINING_VOICES = tuple(
    accent if variant == "-" else f"{accent}+{variant}"
    for accent, variants in _SPEAKERS.items()
    for variant in variants.split()
)
NEW_VOICES = ("en-us+caleb", "en-us+david", "en-us+sandro", "en-us+victor", "en-us+Storm")

TRAINING_RATES = (120, 130, 150, 160, 170, 180, 200, 210)
NEW_RATES = (140, 190)
TRAINING_PITCHES = (20, 40, 50, 60, 80)
NEW_PITCHES = (30, 70)
