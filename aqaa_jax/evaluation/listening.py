"""Human ratings: one page to listen to, ratings 1-5 as JSONL, and what they come to.

The page is a file without a server: it plays question and answer, keeps the ratings in the browser, and saves them as
JSONL. Items have meaningless names and a shuffled order; which of them are controls is in ``listen.key.json``, which
raters are not given.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aqaa_jax import atomic
from aqaa_jax.dsp import wav as wavs
from aqaa_jax.evaluation.cases import Case
from aqaa_jax.evaluation.run import Run

PAGE, KEY, JUDGE = "listen.html", "listen.key.json", "mos"
SCALE = (1, 2, 3, 4, 5)
QUESTION = "How good is this spoken answer, as an answer and as speech? 1 = bad, 5 = excellent"
SILENT = "answers/.silence.wav"
SCRIPT = """
const store = 'ratings ' + document.title, kept = JSON.parse(localStorage.getItem(store) || '{}');
const rater = document.getElementById('rater');
rater.value = kept.rater || '';
const save = () => { localStorage.setItem(store, JSON.stringify(kept)); count(); };
const count = () => { document.getElementById('done').textContent =
  Object.keys(kept.scores || {}).length + ' of ' + document.querySelectorAll('section').length; };
rater.oninput = () => { kept.rater = rater.value; save(); };
for (const input of document.querySelectorAll('input[type=radio]')) {
  if ((kept.scores || {})[input.name] == input.value) input.checked = true;
  input.onchange = () => { (kept.scores = kept.scores || {})[input.name] = Number(input.value); save(); };
}
document.getElementById('save').onclick = () => {
  if (!rater.value.trim()) { alert('Please enter a name or a number for yourself.'); return; }
  const lines = Object.entries(kept.scores || {}).map(([item, score]) =>
    JSON.stringify({item, rater: rater.value.trim(), score, sheet: document.title}));
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([lines.join('\\n') + '\\n'], {type: 'application/jsonl'}));
  link.download = 'ratings-' + rater.value.trim().replace(/\\W+/g, '_') + '.jsonl';
  link.click();
};
count();
"""


def write_page(run: Run, *, answers: int = 40, controls: int = 5, seed: int = 0) -> Path:
    """``listen.html`` and its key: up to ``answers`` answers, spread over the groups, and ``controls`` of each control.

    Controls: silence; the answer to another case; the recorded right answer where there is one.
    """
    rng = np.random.default_rng(seed)
    spoken = run.answers.results()
    cases = [case for case in run.cases.cases if "wav" in spoken.get(case.id, {})]
    if not cases:
        raise ValueError(f"{run.folder}: no spoken answers to listen to; generate them first")
    chosen = _spread(cases, answers, rng)
    wavs.write(run.folder / SILENT, np.zeros(16000, np.float32), 16000)
    items = [("speech", case, spoken[case.id]["wav"]) for case in chosen]
    for case in chosen[:controls]:
        others = [o for o in cases if o.question != case.question and (not o.answer or o.answer != case.answer)]
        items.append(("silence", case, SILENT))
        if others:
            items.append(("swapped_pair", case, spoken[others[int(rng.integers(len(others)))].id]["wav"]))
        if case.answer_audio:
            items.append(("reference", case, os.path.relpath(case.answer_audio, run.folder)))
    rng.shuffle(items)  # pyright: ignore[reportArgumentType]
    names = [hashlib.sha256(f"{seed} {kind} {case.id}".encode()).hexdigest()[:10] for kind, case, _ in items]
    title = f"{run.folder.name} {hashlib.sha256(''.join(names).encode()).hexdigest()[:8]}"
    key = {name: {"kind": kind, "case": case.id} for name, (kind, case, _) in zip(names, items, strict=True)}
    atomic.write_json(run.folder / KEY, {"sheet": title, "items": key})
    sections = [_section(run, name, case, wav) for name, (_, case, wav) in zip(names, items, strict=True)]
    with atomic.written(run.folder / PAGE) as part:
        part.write_text(_page(title, sections), encoding="utf-8")
    return run.folder / PAGE


def import_ratings(run: Run, files: Sequence[str | Path]) -> int:
    """The ratings of all ``files`` as judgements of the judge ``mos``: per item the mean over raters, the last rating
    of a rater counting. Returns how many items were rated.

    Raises ``ValueError`` naming file and line for a rating of another sheet, an unknown item or a score off the scale.
    """
    path = run.folder / KEY
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; write the listening page first")
    key = atomic.read_json(path)
    ratings: dict[str, dict[str, int]] = {}
    for file in files:
        for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                item, rater, score = _rating(line, key, f"{file}, line {number}")
                ratings.setdefault(item, {})[rater] = score
    journal = run.judgements(JUDGE)
    for item, scores in ratings.items():
        about = key["items"][item]
        mean = float(np.mean(list(scores.values())))
        journal.add({"id": f"{about['kind']}/{about['case']}", "case": about["case"], "ratings": scores, "score": mean})
    return len(ratings)


def _rating(line: str, key: dict[str, Any], where: str) -> tuple[str, str, int]:
    try:
        values = json.loads(line)
        item, rater, score, sheet = (values[name] for name in ("item", "rater", "score", "sheet"))
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{where}: not a rating with item, rater, score and sheet") from None
    if sheet != key["sheet"] or item not in key["items"]:
        raise ValueError(f"{where}: a rating of item {item!r} of {sheet!r}; expected items of {key['sheet']!r}")
    if isinstance(score, bool) or score not in SCALE:
        raise ValueError(f"{where}: score {score!r}; expected one of {', '.join(map(str, SCALE))}")
    return item, str(rater), score


def _spread(cases: Sequence[Case], wanted: int, rng: np.random.Generator) -> list[Case]:
    """Up to ``wanted`` cases, taken from the groups in turn, in random order within each."""
    groups: dict[str, list[Case]] = {}
    for i in rng.permutation(len(cases)):
        groups.setdefault(cases[i].group, []).append(cases[i])
    out: list[Case] = []
    while len(out) < min(wanted, len(cases)):
        for members in groups.values():
            if members and len(out) < wanted:
                out.append(members.pop())
    return out


def _section(run: Run, name: str, case: Case, wav: str) -> str:
    asked = case.turns[-1].audio
    played = f"<audio controls src='{_address(os.path.relpath(asked, run.folder))}'></audio>" if asked else ""
    buttons = "".join(f"<label><input type=radio name={name} value={n}> {n}</label> " for n in SCALE)
    return (
        f"<section><p>{played} {html.escape(case.question)}</p>"
        f"<p><audio controls src='{_address(wav)}'></audio></p><p>{buttons}</p></section>"
    )


def _address(path: str) -> str:
    return html.escape(Path(path).as_posix(), quote=True)


def _page(title: str, sections: Sequence[str]) -> str:
    style = (
        "body{font:16px/1.6 system-ui,sans-serif;max-width:45rem;margin:2rem auto}section{border-top:1px solid #ccc}"
    )
    head = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{style}</style>"
    top = f"<h1>Listening</h1><p>{QUESTION}.</p><p>You are <input id=rater placeholder='name or number'></p>"
    end = "<p><button id=save>Save my ratings</button> <span id=done></span></p>"
    return "\n".join([head, top, *sections, end, f"<script>{SCRIPT}</script>"]) + "\n"
