"""Judges: a question, a right answer where there is one, and an answer, all as text, to a score or to edits."""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

import numpy as np

from aqaa_jax.evaluation import prompts
from aqaa_jax.evaluation.endpoint import Endpoint, EndpointError
from aqaa_jax.evaluation.metrics import character_edits, word_edits
from aqaa_jax.evaluation.sphinx import normalize_text

Judgement = dict[str, Any]  # {"score": …} or {"edits": …, "of": …}


class Judge(Protocol):
    """``name`` is unique to what it does, down to prompt and model: it names the file of its judgements."""

    name: str
    needs_reference: bool
    reads_text: bool  # cheap enough to judge the written text beside the speech

    def __call__(self, question: str, reference: str, answer: str) -> Judgement: ...


class Exact:
    """1 if the answer has the words of the reference, case and punctuation aside; an empty answer has none."""

    name, needs_reference, reads_text = "exact", True, True

    def __call__(self, question: str, reference: str, answer: str) -> Judgement:
        return {"score": int(normalize_text(answer) == normalize_text(reference) != "")}


class ErrorRate:
    """Word or character edits against the reference."""

    needs_reference, reads_text = True, True

    def __init__(self, name: str):
        self.name, self._edits = name, {"wer": word_edits, "cer": character_edits}[name]

    def __call__(self, question: str, reference: str, answer: str) -> Judgement:
        edits, of = self._edits(answer, reference)
        return {"edits": edits, "of": of}


class Language:
    """A language model with one of our prompts; ``runs`` replies are averaged, and one bad reply is a failure."""

    needs_reference, reads_text = False, False

    def __init__(self, kind: str, endpoint: Endpoint, runs: int = 1):
        self._prompt, self._endpoint, self._runs = prompts.PROMPTS[kind], endpoint, runs
        by = re.sub(r"[^\w.-]+", "_", endpoint.model)
        self.name = f"{self._prompt.version}@{by}" + (f"x{runs}" if runs > 1 else "")

    def __call__(self, question: str, reference: str, answer: str) -> Judgement:
        asked = [
            {"role": "system", "content": self._prompt.instruction},
            {"role": "user", "content": prompts.message(question, reference, answer)},
        ]
        replies = [self._endpoint.complete(asked, seed=seed) for seed in range(self._runs)]
        scores = [self._score(reply) for reply in replies]
        return {"score": float(np.mean(scores)), "replies": replies}

    def _score(self, reply: str) -> int:
        found = re.search(r"\{.*\}", reply, re.DOTALL)
        try:
            score = json.loads(found[0])["score"] if found else None
        except (ValueError, KeyError, TypeError):
            score = None
        if isinstance(score, bool) or score not in self._prompt.scores:
            raise EndpointError(f"a reply without a score in {self._prompt.scores}: {reply[:200]!r}")
        return int(score)


def make_judge(name: str, endpoint: Endpoint | None = None, runs: int = 1) -> Judge:
    """``exact``, ``wer``, ``cer``, or with an ``endpoint`` a language model. Raises ``ValueError`` for another."""
    if name == "exact":
        return Exact()
    if name in ("wer", "cer"):
        return ErrorRate(name)
    if name not in prompts.PROMPTS:
        raise ValueError(f"judge {name!r}; expected exact, wer, cer or one of {', '.join(prompts.PROMPTS)}")
    if endpoint is None or not endpoint.model or runs < 1:
        raise ValueError(f"judge {name!r} is a language model; expected --endpoint, --judge-model and at least one run")
    return Language(name, endpoint, runs)
