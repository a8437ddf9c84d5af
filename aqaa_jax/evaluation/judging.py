"""The third step: every answer before every judge, and beside the answers the controls.

Controls are answers whose worth is known: *silence* (what the recogniser heard in zeros), *wrong_answer* (the right
answer to another question, or a false sentence), *swapped_pair* (what the model said to another case), and *reference*
(the recorded right answer), which should do well. A judge that does not tell them from the answers tells nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from aqaa_jax.evaluation.cases import Case
from aqaa_jax.evaluation.judges import Judge
from aqaa_jax.evaluation.run import Run
from aqaa_jax.evaluation.sphinx import normalize_text
from aqaa_jax.evaluation.transcribe import REFERENCE, SILENCE

CONTROLS = ("silence", "wrong_answer", "swapped_pair", "reference")
WRONG = "The capital of the moon is a bicycle."  # for open questions, in place of another question's answer
BATCH = 16


class Item(NamedTuple):
    """One thing to be judged. ``kind``: speech, text, or a control."""

    kind: str
    case: Case
    answer: str

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.case.id}"


def items(run: Run, judge: Judge, *, controls: int, seed: int = 0) -> list[Item]:
    """What ``judge`` is given: transcripts, texts if it reads them (or if there is no speech), some of each control.

    An answer without a transcript is not judged as speech: the step before failed, and the report counts it.
    """
    answers, heard = run.answers.results(), run.transcripts.results()
    cases = [c for c in run.cases.cases if c.answer or not judge.needs_reference]
    speech = [Item("speech", c, heard[c.id]["heard"]) for c in cases if c.spoken and c.id in heard]
    written = [c for c in cases if c.written and c.id in answers and (judge.reads_text or not c.spoken)]
    text = [Item("text", c, answers[c.id]["text"]) for c in written]
    rng = np.random.default_rng(seed)
    own = [item for item in speech if item.case.written] or speech  # answers, not what went through the codec
    chosen = [own[i] for i in np.sort(rng.permutation(len(own))[:controls])]
    return [*speech, *text, *_controls(run, chosen, own, rng)]


def _controls(run: Run, chosen: Sequence[Item], speech: Sequence[Item], rng: np.random.Generator) -> Iterator[Item]:
    heard = run.transcripts.results()
    for item in chosen:
        case = item.case
        if SILENCE in heard:
            yield Item("silence", case, heard[SILENCE]["heard"])
        if REFERENCE + case.id in heard:
            yield Item("reference", case, heard[REFERENCE + case.id]["heard"])
        others = [o for o in speech if _another(o.case, case)]
        other = others[int(rng.integers(len(others)))] if others else None
        yield Item("wrong_answer", case, other.case.answer if other and other.case.answer else WRONG)
        if other:
            yield Item("swapped_pair", case, other.answer)


def _another(other: Case, case: Case) -> bool:
    """Whether an answer to ``other`` is none to ``case``: another right answer, or another question if it is open."""
    if other.answer and case.answer:
        return normalize_text(other.answer) != normalize_text(case.answer)
    return other.question != case.question


def judge(
    run: Run, judge: Judge, say: Callable[[str], None], *, controls: int = 50, seed: int = 0, workers: int = 4
) -> None:
    """Fill ``judgements.NAME.jsonl``. What a judge cannot judge is a failure with its reason, never a score."""
    given = {item.id: item for item in items(run, judge, controls=controls, seed=seed)}
    journal = run.judgements(judge.name)

    def one(key: str) -> dict[str, Any]:
        item = given[key]
        line = {"id": key, "case": item.case.id, "answer": item.answer}
        try:
            return line | judge(item.case.question, item.case.answer, item.answer)
        except ValueError as error:
            return line | {"failure": " ".join(str(error).split())}

    changed = [k for k in given if k in journal.lines and journal.lines[k]["answer"] != given[k].answer]
    if changed:
        raise ValueError(f"{journal.path}: judged other answers than these (first {changed[0]!r}); remove it")
    with ThreadPoolExecutor(workers) as pool:

        def some(keys: list[str]) -> Iterator[dict[str, Any]]:
            yield from pool.map(one, keys)
            say(f"[{judge.name}] {sum(key in journal.lines for key in given)}/{len(given)} judged")

        journal.fill(given, some, BATCH if not judge.reads_text else 500)
