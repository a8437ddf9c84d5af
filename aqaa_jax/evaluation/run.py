"""One evaluation on disk: its cases, and a file of results per step, each of which can be made again alone."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aqaa_jax.atomic import read_json, write_json
from aqaa_jax.evaluation.cases import CaseSet, from_json, to_json
from aqaa_jax.evaluation.journal import Journal
from aqaa_jax.inference.system import shipped_folder

SET, ABOUT = "set.json", "about.json"
PIECE = 1 << 20  # bytes at either end of a large file that stand for it in a model's hash


@dataclass(frozen=True)
class Run:
    """``folder/``: ``set.json``, ``about.json``, ``answers.jsonl``, ``answers/*.wav``, ``transcripts.jsonl``,
    ``measures.jsonl``, ``judgements.NAME.jsonl``, and the report."""

    folder: Path
    cases: CaseSet
    about: dict[str, Any]

    @property
    def answers(self) -> Journal:
        return Journal(self.folder / "answers.jsonl")

    @property
    def transcripts(self) -> Journal:
        return Journal(self.folder / "transcripts.jsonl")

    @property
    def measures(self) -> Journal:
        return Journal(self.folder / "measures.jsonl")

    def judgements(self, name: str) -> Journal:
        return Journal(self.folder / f"judgements.{name}.jsonl")

    @property
    def judges(self) -> list[str]:
        """The names of the judges that have judged."""
        found = sorted(path.name for path in self.folder.glob("judgements.*.jsonl"))
        return [name.removeprefix("judgements.").removesuffix(".jsonl") for name in found]

    def wav(self, case_id: str) -> Path:
        return self.folder / "answers" / f"{case_id}.wav"


def begin(folder: str | Path, cases: CaseSet, about: dict[str, Any]) -> Run:
    """A new run in ``folder``, or the one there, if it is of the same cases and of the same ``about``.

    Raises ``ValueError`` naming what differs.
    """
    folder = Path(folder)
    values = json.loads(json.dumps({"set": to_json(cases), "about": about}))
    if (folder / SET).exists():
        before = open_run(folder)
        known = {"set": to_json(before.cases), "about": before.about}
        changed = [key for key in about if known["about"].get(key) != values["about"][key]]
        if json.loads(json.dumps(known["set"])) != values["set"]:
            changed.append("cases")
        if changed:
            raise ValueError(f"{folder}: begun with other {', '.join(changed)}; choose another folder")
        return before
    write_json(folder / ABOUT, values["about"])
    write_json(folder / SET, values["set"])
    return Run(folder, cases, about)


def open_run(folder: str | Path) -> Run:
    """The run in ``folder``. Raises ``FileNotFoundError`` if there is none."""
    folder = Path(folder)
    if not (folder / SET).is_file():
        raise FileNotFoundError(f"{folder / SET}: missing; generate the answers first")
    cases = from_json(read_json(folder / SET))
    return Run(folder, cases, read_json(folder / ABOUT))


def about_model(folder: str | Path | None) -> dict[str, str]:
    """The model's name, and a hash of the sizes of its files and of a ``PIECE`` at either end of each."""
    path = shipped_folder() if folder is None else Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such model folder")
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.is_file() and p.suffix != ".md"):
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(PIECE)
            stream.seek(max(0, size - PIECE))
            digest.update(f"{file.name} {size}\n".encode() + head + stream.read())
    return {"model": "shipped" if folder is None else str(folder), "sha256": digest.hexdigest()}
