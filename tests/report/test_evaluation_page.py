from dataclasses import replace
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pandas as pd
from evaluation_files import make_cases
from report_pages import PageParser

from kit.competition import LABELS
from kit.evaluation.inputs import WHOLE
from kit.evaluation.methods import evaluate
from kit.evaluation.settings import Settings
from kit.evaluation.tables import SECTIONS, make_tables
from kit.report.evaluation_page import (
    list_worst,
    make_fragment,
    render_evaluation,
    write_evaluation,
)

HOSTILE = "<script>alert(1)</script>"
SETTINGS = Settings(points={"0.5": dict.fromkeys(LABELS, 0.5)}, resamples=100)
FILES = {"predictions": HOSTILE, "labels": "l.csv"}
WRITTEN = {
    "evaluation.html", "table.csv", "cases.csv", "unmatched.csv", "table.md", "table.tex",
    "methods.txt", *(f"{name}.{kind}" for name in (
        "roc", "precision_recall", "reliability", "decision") for kind in ("svg", "png")),
}  # fmt: skip


def make_evaluation(folder, site="x"):
    cases = make_cases(folder, 40, site=site)
    series = [f"s{number}" for number in range(40)]
    details = cases.details.assign(series=series, series_count=1)
    settings = replace(SETTINGS, subgroups=("site",))
    return evaluate(replace(cases, details=details), settings, {}, FILES)


def test_everything_is_written_and_read_again(tmp_path):
    evaluation = make_evaluation(tmp_path)
    out = tmp_path / "deep" / "out"
    paths = write_evaluation(evaluation, out, None)
    assert {path.name for path in paths} == {path.name for path in out.iterdir()} == WRITTEN
    table = pd.read_csv(out / "table.csv")
    assert len(table) == len(evaluation.statements)
    np.testing.assert_allclose(table["value"], evaluation.statements["value"], rtol=1e-5)
    cases = pd.read_csv(out / "cases.csv")
    np.testing.assert_allclose(cases[f"{WHOLE}: any"], evaluation.cases.models[WHOLE][:, 5])
    assert cases["series"].tolist() == [f"s{number}" for number in range(40)]
    assert "unit of analysis" in (out / "methods.txt").read_text(encoding="utf-8")


def test_the_page_needs_no_script_and_no_network_and_escapes_everything(tmp_path):
    evaluation = make_evaluation(tmp_path, site=HOSTILE)
    write_evaluation(evaluation, tmp_path / "out", None)
    text = (tmp_path / "out" / "evaluation.html").read_text(encoding="utf-8")
    page = PageParser(text)
    assert page.scripts == []
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text
    policy = next(attrs for _, attrs in page.tags if "http-equiv" in attrs)["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    images = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 4
    assert all(source.startswith("data:image/svg+xml;base64,") for source in images)
    assert "Not a medical device" in text
    for title, _ in SECTIONS.values():
        assert f"<h2>{title}</h2>" in text


def test_the_worst_cases_are_those_of_the_highest_loss(tmp_path):
    worst = list_worst(make_evaluation(tmp_path))
    evaluation = make_evaluation(tmp_path)
    labels, values = evaluation.cases.labels[:, 5], evaluation.cases.models[WHOLE][:, 5]
    order = np.argsort(-np.abs(labels - values), kind="stable")[:5]
    shown = worst[worst["finding"] == "any"]
    assert shown["id"].tolist() == evaluation.cases.ids[order].tolist()
    assert shown["label"].tolist() == labels[order].tolist()
    assert len(worst) == 30


def test_the_worst_cases_are_linked_to_the_page_of_the_scans(tmp_path):
    evaluation = make_evaluation(tmp_path)
    page = tmp_path / "pages" / "my scans.html"
    page.parent.mkdir()
    page.touch()
    write_evaluation(evaluation, tmp_path / "out", page)
    text = (tmp_path / "out" / "evaluation.html").read_text(encoding="utf-8")
    links = [urlsplit(attrs["href"]) for tag, attrs in PageParser(text).tags if tag == "a"]
    assert len(links) == 30
    assert (tmp_path / "out" / unquote(links[0].path)).resolve() == page.resolve()
    worst = list_worst(evaluation).iloc[0]
    named = parse_qs(links[0].fragment)
    assert named == {"study": [worst["StudyInstanceUID"]], "series": [worst["series"]]}


def test_a_case_has_an_address_and_the_page_none_without_scans(tmp_path):
    row = {"SOPInstanceUID": "a&b", "SeriesInstanceUID": "s", "StudyInstanceUID": ""}
    assert make_fragment(row) == "series=s&slice=a%26b"
    evaluation = make_evaluation(tmp_path)
    write_evaluation(evaluation, tmp_path / "out", None)
    tables = make_tables(evaluation.statements)
    assert "<a " not in render_evaluation(evaluation, tables, tmp_path / "out", None)
