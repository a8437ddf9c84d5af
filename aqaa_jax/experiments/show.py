"""A sweep's results to read and to look at: text for the terminal, Markdown and pictures for the notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aqaa_jax.atomic import read_json
from aqaa_jax.evaluation import plots

Results = Mapping[str, Any]


def committed(path: str | Path) -> Results | None:
    """The results of a run at full size that were kept, or None: it has not been run yet."""
    return read_json(path) if Path(path).is_file() else None


def figure(value: Mapping[str, Any]) -> str:
    """``0.62 [0.58, 0.66]``; a dash for what is not a number."""
    if value.get("value") is None:
        return "–"
    number, low, high = (f"{value[k]:.3g}" if value[k] is not None else "–" for k in ("value", "low", "high"))
    return f"{number} [{low}, {high}]"


def metrics(results: Results) -> list[str]:
    """The names of the figures, in the order in which they first occur."""
    return list(dict.fromkeys(name for arm in results["arms"].values() for name in arm["figures"]))


def table(results: Results, names: Sequence[str] = ()) -> str:
    """Markdown: an arm a line, its figures with 95 % intervals, and the paper's row beside them where there is one."""
    names = list(names) or metrics(results)
    paper = list(dict.fromkeys(name for arm in results["arms"].values() for name in arm["paper"]))
    head = ["arm", "seeds", *names, *(f"paper: {name}" for name in paper)]
    lines = [head, ["---"] * len(head)]
    for name, arm in results["arms"].items():
        ours = [figure(arm["figures"].get(metric, {})) for metric in names]
        theirs = [f"{arm['paper'][key]:g}" if key in arm["paper"] else "–" for key in paper]
        lines.append([name, str(arm["seeds"]), *ours, *theirs])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def verdicts(results: Results) -> str:
    """Markdown: every claim, the gains that decide it, and the verdict."""
    lines = [f"Rule. {results['rule']}", ""]
    for claim in results["claims"]:
        gains = "; ".join(f"over {arm} {figure(gain)}" for arm, gain in claim["gains"].items()) or "not measured"
        lines.append(f"- **{claim['verdict']}** – {claim['says']}")
        lines.append(f"  ({claim['metric']}, margin {claim['margin']:g}: gain of {claim['better']} {gains})")
    return "\n".join(lines)


def summary(results: Results) -> str:
    """Everything, as text."""
    cells = results["cells"]
    head = (
        f"{results['name']}: {cells['measured']} of {cells['of']} cells, {results['cpu_hours']:.2f} CPU hours of stages"
    )
    failed = {name: arm["failures"] for name, arm in results["arms"].items() if arm["failures"]}
    notes = [f"failed answers, left out: {failed}"] if failed else []
    return "\n".join([head, *notes, "", table(results), "", verdicts(results)])


def picture(results: Results, path: str | Path, names: Sequence[str], *, title: str) -> Path:
    """Bars of the figures ``names`` of every arm, with their intervals, as a PNG or SVG file."""
    chosen = {
        name: {metric: arm["figures"][metric] for metric in names if metric in arm["figures"]}
        for name, arm in results["arms"].items()
        if arm["figures"]
    }
    plots.bars(chosen, path, title=title)
    return Path(path)
