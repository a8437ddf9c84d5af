"""What a cell is measured by: tables of (sum, count) per case, one file per kind, made again only if missing.

A figure of a cell is sum of sums over sum of counts: a mean, an error rate, a loss per token. Cases are the same in
every cell, in the same order, so that cells compare case by case; what failed has count 0.

=============  ===========================================================================================
kind           metrics
=============  ===========================================================================================
answers        factuality (heard = the right answer), relevance (heard is an answer to a question of this family),
               written (its text is right), alignment_wer (heard against its own text), stopped, whole (no repairs);
               voice_control (the request moved rate or pitch the right way)
perplexity     TASK text_ppl, linguistic_ppl, semantic_ppl, audio_ppl of held-out answers
preference     prefers (held-out pairs whose chosen text is likelier), text_margin (by how many nats),
               chosen audio_ppl (of the chosen answers)
segments       first_style, second_style, both_styles, content, and each of a control (experiments/segments.py)
=============  ===========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aqaa_jax.atomic import read_json, write_json
from aqaa_jax.experiments.config import MeasureConfig
from aqaa_jax.training.config import RecipeConfig

Say = Callable[[str], None]
Pairs = Sequence[tuple[float, float]]


class Cell(NamedTuple):
    """One trained arm: ``stage`` left its decoder in ``folder``; ``common`` keeps what all cells are asked."""

    recipe: RecipeConfig
    folder: Path
    stage: str
    common: Path
    config: MeasureConfig


class Table(NamedTuple):
    """(sum, count) of every case, for every metric."""

    cases: list[str]
    metrics: dict[str, list[tuple[float, float]]]
    failures: int = 0


def measure(cell: Cell, say: Say) -> None:
    """Fill ``measure/KIND.json`` for every kind of the config. Raises ``ValueError`` for an unknown kind."""
    from aqaa_jax.experiments import answers, perplexity, preference, segments

    kinds: Mapping[str, Callable[[Cell, Say], Table]] = {
        "answers": answers.table,
        "perplexity": perplexity.table,
        "preference": preference.table,
        "segments": segments.table,
    }
    for kind in cell.config.kinds:
        if kind not in kinds:
            raise ValueError(f"unknown measure {kind!r}; expected some of {', '.join(kinds)}")
        path = table_path(cell.folder, kind)
        if not path.exists():
            table = kinds[kind](cell, say)
            write_json(path, table._asdict())


def table_path(folder: Path, kind: str) -> Path:
    return folder / "measure" / f"{kind}.json"


def read_table(path: Path) -> Table:
    """What ``measure`` wrote."""
    values: dict[str, Any] = read_json(path)
    return Table(values["cases"], values["metrics"], values["failures"])
