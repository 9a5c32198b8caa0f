"""What an evaluation leaves in its folder: tables, figures, the methods, and one HTML page."""

from __future__ import annotations

import base64
import html
import os
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
import pandas as pd

from kit.competition import LABELS
from kit.evaluation.cases import Cases
from kit.evaluation.figures import FIGURES, draw_figures
from kit.evaluation.inputs import IDS, UNITS, WHOLE
from kit.evaluation.intervals import slice_losses
from kit.evaluation.methods import Evaluation, describe_methods, list_limits, list_versions
from kit.evaluation.tables import SECTIONS, format_latex, format_markdown, make_tables
from kit.files import write_text
from kit.report.page import read_asset
from kit.runs.tables import write_frame

_WORST = 5  # cases of each finding
_WARNING = "Not a medical device. For research only; do not base a diagnosis on it."
_STYLE = """
figure { margin: 1.2rem 0; }
figure img { display: block; width: 100%; max-width: 860px; background: #fff; border-radius: 6px; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .3rem; }
td.text { min-width: 10.5rem; white-space: normal; overflow-wrap: anywhere; }
td.text, th:nth-child(2) { text-align: left; }
th:first-child { min-width: 8.6rem; }
tbody th { font-weight: 600; }
"""


def write_evaluation(evaluation: Evaluation, folder: Path, scans_page: Path | None) -> list[Path]:
    """Write everything into `folder` and return the paths.

    `scans_page` is the page of `kit predict --report`, to which the worst cases are linked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = make_tables(evaluation.statements)
    limits, methods = list_limits(evaluation), describe_methods(evaluation)
    texts = {
        "table.md": format_markdown(tables, ["# Evaluation", "", _WARNING, "", *limits]),
        "table.tex": format_latex(tables),
        "methods.txt": methods,
    }
    frames = {
        "table.csv": evaluation.statements,
        "cases.csv": _list_cases(evaluation),
        "unmatched.csv": evaluation.cases.unmatched,
    }
    for name, frame in frames.items():
        write_frame(folder / name, frame)
    for name, text in texts.items():
        write_text(folder / name, text)
    figures = draw_figures(evaluation.findings, evaluation.settings, folder)
    link = None if scans_page is None else quote(os.path.relpath(scans_page, folder))
    page = folder / "evaluation.html"
    write_text(page, render_evaluation(evaluation, tables, folder, link))
    return [page, *(folder / name for name in (*frames, *texts)), *figures]


def render_evaluation(
    evaluation: Evaluation, tables: dict[str, pd.DataFrame], folder: Path, link: str | None
) -> str:
    """Render the page, without a script; the figures are those in `folder`."""
    notes = dict(SECTIONS.values())
    body = [_render_facts(evaluation)]
    for title, table in tables.items():
        body.append(_render_section(title, notes[title], _render_table(title, table)))
    figures = "".join(_render_figure(folder, name, title) for name, title in FIGURES.items())
    body.append(_render_section("Figures", "", figures))
    worst = _render_worst(evaluation, link)
    text = "The cases that cost most, by finding: high probabilities of what is not there, and low."
    body.append(_render_section("Worst cases", text, worst))
    methods = f"<p>{html.escape(describe_methods(evaluation))}</p>"
    body.append(_render_section("Methods", "", methods))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>kit evaluation</title>
<link rel="icon" href="data:,">
<style>
{read_asset("report.css")}{_STYLE}</style>
</head>
<body>
<header>
  <h1>Evaluation</h1>
  <p class="warning" role="note">{_WARNING}</p>
</header>
<main>
{"".join(body)}
</main>
</body>
</html>
"""


def list_worst(evaluation: Evaluation) -> pd.DataFrame:
    """List the cases of each finding with the highest log loss: the ids, label and probability."""
    parts = []
    for finding in evaluation.findings:
        column = LABELS.index(finding.name)
        pairs = [np.zeros((len(finding.labels), len(LABELS))) for _ in range(2)]
        pairs[0][:, column], pairs[1][:, column] = finding.labels, finding.models[WHOLE]
        order = np.argsort(-slice_losses(*pairs)[:, column], kind="stable")[:_WORST]
        details = finding.cases.details.iloc[order]
        ids = {name: details[name] for name in _list_ids(finding.cases)}
        parts.append(
            pd.DataFrame(
                {
                    "finding": finding.name,
                    "id": finding.cases.ids[order],
                    "label": finding.labels[order].astype(int),
                    "probability": finding.models[WHOLE][order],
                    **{name: values.to_numpy() for name, values in ids.items()},
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _list_cases(evaluation: Evaluation) -> pd.DataFrame:
    """Every case: its ids, its labels, what each model predicts, which series stood for it."""
    cases = evaluation.cases
    table = cases.details[_list_ids(cases)].copy()
    for number, label in enumerate(LABELS):
        table[label] = cases.labels[:, number]
    for model, values in cases.models.items():
        for number, label in enumerate(LABELS):
            table[f"{model}: {label}"] = values[:, number]
    return table


def _list_ids(cases: Cases) -> list[str]:
    """The columns that say which case it is: its own id and coarser ones, and its series."""
    ids = [IDS[unit] for unit in UNITS[UNITS.index(cases.unit) :]]
    return [name for name in (*ids, "series", "series_count") if name in cases.details]


def _render_section(title: str, note: str, body: str) -> str:
    note = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{note}{body}</section>\n"


def _render_facts(evaluation: Evaluation) -> str:
    cases = evaluation.cases
    facts = {
        "unit of analysis": cases.unit,
        "cases": str(len(cases.ids)),
        "patients": str(len(np.unique(cases.patients))),
        "ids that do not match": str(len(cases.unmatched)),
        **evaluation.files,
        "kit": list_versions()["kit"],
    }
    items = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in facts.items()
    )
    limits = "".join(f"<li>{html.escape(limit)}</li>" for limit in list_limits(evaluation))
    body = f'<dl class="facts">{items}</dl><ul>{limits}</ul>'
    return _render_section("What was evaluated", "", body)


def _render_table(title: str, table: pd.DataFrame) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table)
    rows = []
    for first, second, *rest in table.astype(str).to_numpy():
        cells = f'<td class="text">{html.escape(second)}</td>' + "".join(map(_render_cell, rest))
        rows.append(f'<tr><th scope="row">{html.escape(first)}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _render_cell(text: str) -> str:
    """A value, and its interval in a line below."""
    value, _, interval = html.escape(text).partition(" (")
    return f"<td>{value}{f'<small>({interval}</small>' if interval else ''}</td>"


def _render_figure(folder: Path, name: str, title: str) -> str:
    encoded = base64.b64encode((folder / f"{name}.svg").read_bytes()).decode()
    return (
        f'<figure><img alt="{html.escape(title)} of each finding" '
        f'src="data:image/svg+xml;base64,{encoded}"><figcaption>{html.escape(title)}'
        f"</figcaption></figure>"
    )


def _render_worst(evaluation: Evaluation, link: str | None) -> str:
    """The worst cases as a table; an id is a link where there is a page of the scans."""
    worst, rows = list_worst(evaluation), []
    for row in worst.to_dict("records"):
        text = html.escape(str(row["id"]))
        if link is not None:
            target = html.escape(f"{link}#{make_fragment(row)}")
            text = f'<a href="{target}">{text}</a>'
        series = html.escape(str(row.get("series") or row.get(IDS["series"]) or ""))
        cells = f"<td>{row['label']}</td><td>{row['probability']:.3f}</td>"
        cells += f'<td class="text">{series}</td>'
        rows.append(
            f'<tr><th scope="row">{row["finding"]}</th><td class="text">{text}</td>{cells}</tr>'
        )
    head = "".join(
        f"<th>{name}</th>" for name in ("finding", "id", "label", "probability", "series")
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Worst cases">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def make_fragment(row: dict) -> str:
    """Make the address of a case on the scans page: `study=…&series=…&slice=…`."""
    series = row.get("series") or row.get(IDS["series"])
    named = {"study": row.get(IDS["study"]), "series": series, "slice": row.get(IDS["slice"])}
    return urlencode({key: value for key, value in named.items() if value})
