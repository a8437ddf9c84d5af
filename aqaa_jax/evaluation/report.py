"""The report of one run, or of several side by side: JSON, Markdown, and a page with plots and players."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aqaa_jax import atomic
from aqaa_jax.evaluation import plots
from aqaa_jax.evaluation.aggregate import aggregate
from aqaa_jax.evaluation.run import Run

PLAYERS = 40  # answers with a player, per run
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #ddd;padding:.3rem .7rem;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%}audio{height:2rem;width:16rem}
.bad{color:#a00}small{color:#666}"""
Report = dict[str, Any]


def write_report(runs: Sequence[Run], folder: str | Path) -> Report:
    """Aggregate ``runs`` and write the report to ``folder``; returns what ``report.json`` holds.

    Several runs must have names of their own: that of their folders. Raises ``ValueError`` if two are the same.
    """
    folder = Path(folder)
    reports = {run.folder.name: aggregate(run) for run in runs}
    if len(reports) < len(runs):
        raise ValueError(f"two of {len(runs)} runs are in folders of one name; expected a name each")
    pictures = _pictures(reports, folder)
    tables = [(title, list(rows)) for title, rows in _tables(reports)]
    atomic.write_json(folder / "report.json", reports)
    with atomic.written(folder / "report.md") as part:
        part.write_text(_markdown(tables, pictures), encoding="utf-8")
    with atomic.written(folder / "report.html") as part:
        part.write_text(_html(tables, pictures, runs, folder), encoding="utf-8")
    return reports


def summary(reports: Mapping[str, Report]) -> str:
    """The tables of the report as text to read in a terminal."""
    out = []
    for title, rows in _tables(reports):
        table = list(rows)
        widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
        out.append(f"\n{title}")
        out += [
            "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table[1:]
        ]
    return "\n".join(out)


def figure_text(figure: Mapping[str, Any]) -> str:
    """``0.93 [0.90, 0.96] n=200``, with the count of failures where there are some."""
    if figure["value"] is None:
        shown = f"– n={figure['n']}"
    else:
        shown = f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}] n={figure['n']}"
    return shown + (f", {figure['failures']} failed" if figure.get("failures") else "")


def _tables(reports: Mapping[str, Report]) -> Iterator[tuple[str, Iterator[list[str]]]]:
    """(title, rows), the first row being the heads."""
    groups = list(dict.fromkeys(group for report in reports.values() for group in report["groups"]))
    for group in groups:
        yield group, _side_by_side({name: report["groups"].get(group, {}) for name, report in reports.items()})
        for tag in dict.fromkeys(t for report in reports.values() for t in report["tags"].get(group, {})):
            flat = {
                name: {
                    f"{value}: {figure}": estimate
                    for value, figures in report["tags"].get(group, {}).get(tag, {}).items()
                    for figure, estimate in figures.items()
                    if " exact" in figure or "@" in figure
                }
                for name, report in reports.items()
            }
            if any(flat.values()):
                yield f"{group}, by {tag}", _side_by_side(flat)
    for name, report in reports.items():
        for judge, controls in report["controls"].items():
            if len(controls) > 1:
                yield f"Controls of {judge}" + (f", {name}" if len(reports) > 1 else ""), _control_rows(controls)
        if "voice_control" in report:
            yield "Voice control" + (f", {name}" if len(reports) > 1 else ""), _voice_rows(report["voice_control"])
        if report["failures"]:
            failed = ([step, key, why] for step, found in report["failures"].items() for key, why in found.items())
            yield "Failures" + (f", {name}" if len(reports) > 1 else ""), _with_heads(["step", "what", "why"], failed)


def _side_by_side(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    yield ["", *figures]
    for name in dict.fromkeys(name for column in figures.values() for name in column):
        yield [name, *(figure_text(column[name]) if name in column else "" for column in figures.values())]


def _control_rows(controls: Mapping[str, Any]) -> Iterator[list[str]]:
    yield ["", "judged", "told from what is right"]
    for kind, figure in controls.items():
        yield [kind, figure_text(figure), {True: "yes", False: "NO", None: ""}[figure.get("told_apart")]]


def _voice_rows(report: Mapping[str, Any]) -> Iterator[list[str]]:
    yield ["asked for", "moved the right way", "median ratio to the plain answer"]
    yield ["any", figure_text(report["right_direction"]), ""]
    for change, figure in report["by_change"].items():
        yield [change, figure_text(figure), figure_text(report["median_ratio"][change])]


def _with_heads(heads: list[str], rows: Iterator[list[str]]) -> Iterator[list[str]]:
    yield heads
    yield from rows


def _pictures(reports: Mapping[str, Report], folder: Path) -> dict[str, str]:
    """Bars of every judge's figure over the groups, and a radar where there are at least three: title -> file."""
    out: dict[str, str] = {}
    names = dict.fromkeys(n for r in reports.values() for figures in r["groups"].values() for n in figures)
    for name in [n for n in names if n.startswith(("speech ", "text ")) or n in ("alignment_wer", "stop_rate")]:
        groups = {
            group: {run: r["groups"][group][name] for run, r in reports.items() if name in r["groups"].get(group, {})}
            for group in dict.fromkeys(g for r in reports.values() for g in r["groups"])
        }
        groups = {group: series for group, series in groups.items() if series}
        file = "".join(c if c.isalnum() else "_" for c in name)
        plots.bars(groups, folder / f"bars_{file}.png", title=name)
        out[name] = f"bars_{file}.png"
        lines = {
            run: {group: series[run]["value"] for group, series in groups.items() if run in series and series[run]["n"]}
            for run in reports
        }
        if len(groups) >= 3 and not name.endswith(("wer", "cer")):
            values = [v for line in lines.values() for v in line.values() if v is not None]
            limits = (0.0, 1.0) if max(values, default=0.0) <= 1 else (1.0, 5.0)
            plots.radar(lines, folder / f"radar_{file}.png", title=name, limits=limits)
            out[f"{name}, by dimension"] = f"radar_{file}.png"
    return out


def _markdown(tables: Sequence[tuple[str, list[list[str]]]], pictures: Mapping[str, str]) -> str:
    out = ["# Evaluation", "", "Each figure with its 95 % interval and the number of cases.", ""]
    for title, rows in tables:
        out += [f"## {title}", "", "| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
        out += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows[1:]]
        out.append("")
    out += [f"![{title}]({file})" for title, file in pictures.items()]
    return "\n".join(out) + "\n"


def _html(
    tables: Sequence[tuple[str, list[list[str]]]], pictures: Mapping[str, str], runs: Sequence[Run], folder: Path
) -> str:
    parts = [f"<!doctype html><meta charset=utf-8><title>Evaluation</title><style>{STYLE}</style><h1>Evaluation</h1>"]
    parts.append("<p>Each figure with its 95 % interval and the number of cases.</p>")
    for run in runs:
        parts.append(f"<p><small>{html.escape(run.folder.name)}: {html.escape(json.dumps(run.about))}</small></p>")
    for title, rows in tables:
        parts.append(f"<h2>{html.escape(title)}</h2><table>")
        parts.append("<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0]) + "</tr>")
        for row in rows[1:]:
            cells = "".join(f"<td class='{'bad' if cell == 'NO' else ''}'>{html.escape(cell)}</td>" for cell in row)
            parts.append(f"<tr>{cells}</tr>")
        parts.append("</table>")
    parts += [f"<figure><img src='{file}' alt='{html.escape(title)}'></figure>" for title, file in pictures.items()]
    for run in runs:
        parts += _players(run, folder)
    return "\n".join(parts) + "\n"


def _players(run: Run, folder: Path) -> Iterator[str]:
    """Questions and answers to listen to, evenly over the cases."""
    answers, heard = run.answers.results(), run.transcripts.results()
    spoken = [case for case in run.cases.cases if "wav" in answers.get(case.id, {})]
    if not spoken:
        return
    yield f"<h2>Answers of {html.escape(run.folder.name)}</h2><table>"
    yield "<tr><th>case</th><th>question</th><th>answer</th><th>its text</th><th>heard</th><th>right</th></tr>"
    for case in spoken[:: max(1, -(-len(spoken) // PLAYERS))]:
        sound = case.turns[-1].audio
        cells = [
            html.escape(f"{case.id} ({case.group})"),
            (_player(Path(sound), folder) if sound else "") + html.escape(case.question),
            _player(run.folder / answers[case.id]["wav"], folder),
            *(
                html.escape(text)
                for text in (answers[case.id]["text"], heard.get(case.id, {}).get("heard", "–"), case.answer)
            ),
        ]
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</table>"


def _player(path: Path, folder: Path) -> str:
    address = html.escape(Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix(), quote=True)
    return f"<audio controls preload=none src='{address}'></audio> "
