"""What a run writes down as it goes: ``metrics.jsonl``, and event files for TensorBoard."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from aqaa_jax import atomic

ROWS, BOARD, CLOCK = "metrics.jsonl", "tensorboard", "clock.json"


class Journal:
    """One JSON object a line, none of a step that is done again.

    Opened at ``step``, the file loses the rows of later steps and a line that was cut short, in one move. ``last`` has
    the newest value of every name that is left, ``began`` when the run did (seconds since 1970). Raises ``ValueError``
    when ``tensorboard`` is asked for and its writer not installed.
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool = False):
        self._board = _writer(folder / BOARD, step) if tensorboard else None
        path = folder / ROWS
        lines = path.read_text().splitlines() if path.exists() else []
        rows = {line: row for line in lines if (row := _row(line)) is not None and row["step"] <= step}
        if len(rows) < len(lines):
            with atomic.written(path) as part:
                part.write_text("".join(f"{line}\n" for line in rows))
        self.last: dict[str, Any] = {}
        for row in rows.values():
            self.last |= row
        if not (folder / CLOCK).exists():
            atomic.write_json(folder / CLOCK, {"began": time.time()})
        self.began = float(atomic.read_json(folder / CLOCK)["began"])
        self._file = path.open("a")

    def row(self, step: int, **values: Any) -> None:
        """One line, there when this returns; numbers go to TensorBoard too."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if self._board is not None and isinstance(value, int | float):
                self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, rgb: np.ndarray) -> None:
        """For TensorBoard: uint8 [height, width, 3]."""
        if self._board is not None:
            self._board.add_image(name, rgb, step, dataformats="HWC")

    def sound(self, step: int, name: str, wav_W: np.ndarray, rate: int) -> None:
        """For TensorBoard: a waveform within [-1, 1]."""
        if self._board is not None:
            self._board.add_audio(name, wav_W, step, sample_rate=rate)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


class Silence(Journal):
    """The journal of the processes that do not write."""

    def __init__(self) -> None:
        self._board, self.last, self.began = None, {}, time.time()

    def row(self, step: int, **values: Any) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _writer(folder: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("loop tensorboard is True; expected its writer: pip install 'aqaa_jax[tensorboard]'") from None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
