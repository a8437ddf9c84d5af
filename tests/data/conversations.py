"""A few conversations with codes, and sources of them."""

import numpy as np

from aqaa_jax.config import VocabConfig
from aqaa_jax.data.records import Codes, Part, Record, Turn

CONFIG = VocabConfig(size=512 + 5120, audio_start=512)
QUESTIONS = ("What is two plus two?", "Say the word apple.", "Which day comes after Monday?", "Name a color.")
ANSWERS = ("The answer is four.", "Apple.", "The day after Monday is Tuesday.", "A color is blue.")


class Listed:
    """Records in a list, as a source; ``None`` is a record that cannot be read."""

    def __init__(self, records, name="listed"):
        self.records, self.name = list(records), name

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        if self.records[index] is None:
            raise ValueError(f"{self.name}: record {index} is broken")
        return self.records[index]

    def fingerprint(self):
        return f"{self.name} {len(self.records)}"


def codes(rng, groups):
    return Codes(rng.integers(0, 1024, 2 * groups).astype(np.int32), rng.integers(0, 4096, 3 * groups).astype(np.int32))


def conversation(number, rejected=False):
    rng = np.random.default_rng(number)
    question = Part(QUESTIONS[number % 4], codes=codes(rng, int(rng.integers(3, 12))))
    answer = Part(ANSWERS[number % 4], "happy", codes=codes(rng, int(rng.integers(2, 9))))
    worse = (Part(ANSWERS[(number + 1) % 4], codes=codes(rng, 3)),) if rejected else ()
    return Record(f"r{number}", (Turn("human", (question,)), Turn("assistant", (answer,))), worse)
