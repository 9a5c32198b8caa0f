"""The statements of an evaluation as tables for people: Markdown and LaTeX."""

from __future__ import annotations

import numpy as np
import pandas as pd

# The title of each section's table, and what its reader has to know.
SECTIONS = {
    "discrimination": (
        "Discrimination",
        "95 % intervals: DeLong's, or a bootstrap over patients.",
    ),
    "operating point": (
        "Operating points",
        "95 % intervals: Wilson's; of likelihood ratios by logarithms. Wilson's takes the rows as "
        "independent, and is too narrow where a patient has several.",
    ),
    "calibration": (
        "Calibration",
        "Perfect are an intercept of 0 and a slope of 1. 95 % intervals: Wald's, for the other "
        "measures a bootstrap over patients.",
    ),
    "comparison": (
        "Comparisons",
        "Differences on the same cases, by DeLong's test and by a bootstrap over patients. "
        "Operating points have the same threshold for both.",
    ),
    "subgroup": (
        "Subgroups",
        "Described, not compared: no interaction is tested, and none is claimed.",
    ),
}
_COUNTS = ("n", "positives", "TP", "FP", "TN", "FN")
_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "−": "$-$", "–": "--", "≥": r"$\geq$", "<": "$<$", ">": "$>$",
}  # fmt: skip


def make_tables(statements: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Arrange the statements for people: by the title of its section, a table of texts.

    A row is a finding, model and group; the first table also counts the cases.
    """
    tables = {}
    for section, (title, _) in SECTIONS.items():
        part = statements[statements["section"] == section]
        if len(part):
            tables[title] = _arrange(part)
    cases = _arrange(statements[statements["section"] == "cases"])
    first = SECTIONS["discrimination"][0]
    tables[first] = cases.merge(tables[first], on="finding", how="right", sort=False)
    front = ["finding", "model"]
    tables[first] = tables[first][[*front, *tables[first].columns.drop(front)]]
    return tables


def format_markdown(tables: dict[str, pd.DataFrame], preface: list[str]) -> str:
    """Format the tables, below the sentences of `preface`."""
    notes = dict(SECTIONS.values())
    lines = [*preface, ""]
    for title, table in tables.items():
        lines += [f"## {title}", "", notes[title], ""]
        texts = table.astype(str).apply(lambda column: column.str.replace("|", r"\|"))
        rows = [list(table), ["---"] * len(table.columns), *texts.to_numpy().tolist()]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    return "\n".join(lines)


def format_latex(tables: dict[str, pd.DataFrame]) -> str:
    """Format the tables as `table` environments that need no package."""
    notes = dict(SECTIONS.values())
    lines = []
    for title, table in tables.items():
        rows = [" & ".join(map(_escape, row)) + r" \\" for row in table.astype(str).to_numpy()]
        lines += [
            r"\begin{table}",
            rf"\caption{{{title}. {_escape(notes[title])}}}",
            rf"\begin{{tabular}}{{ll{'r' * (len(table.columns) - 2)}}}",
            r"\hline",
            " & ".join(map(_escape, table)) + r" \\",
            r"\hline",
            *rows,
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    return "\n".join(lines)


def format_cell(row: pd.Series) -> str:
    """Format one statement: its value with the interval, or that it is not defined."""
    measure, value, low, high = row["measure"], row["value"], row["low"], row["high"]
    if np.isnan(value):
        return "not defined"
    if measure in _COUNTS:
        return f"{value:.0f}"
    digits = 2 if measure.startswith("LR") else 4 if "log loss" in measure else 3
    signed = "+" if row["section"] == "comparison" or "intercept" in measure else ""
    texts = [f"{number:{signed}.{digits}f}".replace("-", "−") for number in (value, low, high)]
    if row["interval"] == "":
        return texts[0]
    if np.isnan(low):
        return f"{texts[0]} (interval not defined)"
    return f"{texts[0]} ({texts[1]}{' to ' if signed else '–'}{texts[2]})"


def format_p(p: float) -> str:
    """Format a p-value; a blank where there is none."""
    if np.isnan(p):
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _arrange(part: pd.DataFrame) -> pd.DataFrame:
    """Arrange one section: a row a finding and model or group, a column a measure."""
    section = part["section"].iloc[0]
    second: dict[str, list[str]] = {
        "cases": [],
        "operating point": [section],
        "subgroup": [section],
    }
    front = ["finding", *second.get(section, ["model"])]
    part = part.rename(columns={"group": section})
    part["text"] = part.apply(format_cell, axis=1)
    ways = part[part["interval"] != ""].groupby("measure")["interval"].nunique()
    twice = part["measure"].isin(ways[ways > 1].index)
    part.loc[twice, "measure"] += " (" + part["interval"] + ")"
    if part["p"].notna().any():
        tested = part[part["p"].notna()]
        tests = tested.assign(measure="p (" + tested["interval"] + ")")
        tests["text"] = tests["p"].map(format_p)
        part = pd.concat([part, tests]).sort_index(kind="stable")
    columns = pd.unique(part["measure"])
    wide = part.set_index([*front, "measure"])["text"].unstack("measure")
    order = part[front].drop_duplicates()
    return order.join(wide[columns], on=front).fillna("").reset_index(drop=True)


def _escape(text: str) -> str:
    return "".join(_ESCAPES.get(letter, letter) for letter in str(text))
