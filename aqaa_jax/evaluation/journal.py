"""Results on disk as they come: one JSON object a line, one file a step, so that a step goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


class Journal:
    """``path`` with lines that carry an ``id``; a later line replaces an earlier one of the same id.

    A line that holds a ``failure`` is no result: it is kept for the report and done again by the next run. A torn last
    line, left by a kill, is dropped.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.lines: dict[str, dict[str, Any]] = {line["id"]: line for line in _whole_lines(self.path)}

    def done(self, key: str) -> bool:
        """Whether there is a result for ``key``."""
        return key in self.lines and "failure" not in self.lines[key]

    def add(self, line: Mapping[str, Any]) -> None:
        """Append one line; it outlives the process from here on."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lines[line["id"]] = dict(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def fill(self, keys: Iterable[str], make: Callable[[list[str]], Iterable[Mapping[str, Any]]], batch: int) -> None:
        """``make`` the lines of those ``keys`` that have no result, ``batch`` at a time."""
        missing = [key for key in keys if not self.done(key)]
        for start in range(0, len(missing), batch):
            for line in make(missing[start : start + batch]):
                self.add(line)

    def results(self) -> dict[str, dict[str, Any]]:
        """The lines that hold a result, by id."""
        return {key: line for key, line in self.lines.items() if "failure" not in line}

    def failures(self) -> dict[str, str]:
        """What went wrong, by id."""
        return {key: line["failure"] for key, line in self.lines.items() if "failure" in line}


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of ``path``; one without an end is cut off the file. Raises ``ValueError`` naming a bad line."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("rb+") as file:
            file.truncate(len(whole))
    for number, line in enumerate(whole.decode("utf-8").splitlines(), 1):
        try:
            value = json.loads(line)
            value["id"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: line {number} is not a JSON object with an 'id'") from None
        yield value
