from dataclasses import replace

import numpy as np
import pandas as pd
from evaluation_files import make_cases

from kit.competition import LABELS
from kit.evaluation.measures import measure_cases
from kit.evaluation.settings import COLUMNS, Settings
from kit.evaluation.tables import (
    SECTIONS,
    format_cell,
    format_latex,
    format_markdown,
    format_p,
    make_tables,
)

SETTINGS = Settings(points={"0.5": dict.fromkeys(LABELS, 0.5)}, resamples=100)


def cell(measure="AUC", value=0.9662, low=0.9511, high=0.9804, **more):
    empty = dict.fromkeys(COLUMNS, "")
    given = {"measure": measure, "value": value, "low": low, "high": high, "interval": "DeLong"}
    return format_cell(pd.Series({**empty, **given, **more}))


def test_a_cell_is_what_a_paper_prints():
    assert cell() == "0.966 (0.951–0.980)"
    assert cell(low=np.nan, high=np.nan) == "0.966 (interval not defined)"
    assert cell(value=np.nan) == "not defined"
    assert cell("n", 491.0, interval="") == "491"
    assert cell("LR+", 12.345, 8.0, 19.5) == "12.35 (8.00–19.50)"
    assert cell("ECE", 0.0312, np.nan, np.nan, interval="") == "0.031"
    difference = cell(value=-0.112, low=-0.15, high=0.02, section="comparison")
    assert difference == "−0.112 (−0.150 to +0.020)"
    assert [format_p(p) for p in (0.0004, 0.0314, np.nan)] == ["<0.001", "0.031", ""]


def test_each_section_is_a_table_with_a_row_a_finding(tmp_path):
    cases = make_cases(tmp_path, 60, site=["x", "y"] * 30)
    tables = make_tables(measure_cases(cases, replace(SETTINGS, subgroups=("site",))))
    assert list(tables) == [title for title, _ in SECTIONS.values()]
    first = tables["Discrimination"]
    assert list(first)[:5] == ["finding", "model", "n", "positives", "prevalence"]
    assert {"AUC (DeLong)", "AUC (bootstrap)", "average precision"} <= set(first)
    assert len(first) == 12
    assert first["finding"].iloc[0] == "any"
    assert "p (DeLong)" in tables["Comparisons"]
    assert tables["Subgroups"]["subgroup"].tolist()[:2] == ["site: x", "site: y"]
    assert not any((table == "").all(axis=None) for table in tables.values())


def test_markdown_and_latex_have_every_row_and_escape_signs(tmp_path):
    cases = make_cases(tmp_path, 60, site=["a|b", "c_d & 5 %"] * 30)
    tables = make_tables(measure_cases(cases, replace(SETTINGS, subgroups=("site",))))
    markdown = format_markdown(tables, ["# Evaluation"])
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == sum(len(table) + 2 for table in tables.values())
    widths = {len(table.columns) for table in tables.values()}
    assert {row.replace(r"\|", "").count("|") - 1 for row in rows} == widths
    latex = format_latex(tables)
    assert latex.count(r"\begin{tabular}") == len(tables)
    assert r"c\_d \& 5 \%" in latex
    assert not set("−–≥") & set(latex)
