"""Where weights come from: marked by the phantom, carried by exports, said first."""

import zipfile

import pytest
from report_pages import read_data

from kit.cli.commands import main
from kit.files import read_json
from kit.report.page import describe_model
from kit.report.run_page import write_report
from kit.runs.directory import Run
from kit.runs.prediction import load_model
from kit.runs.provenance import (
    SYNTHETIC,
    UNRECORDED,
    describe_provenance,
    is_synthetic,
    list_facts,
    present_provenance,
    read_provenance,
)


def test_the_phantom_marks_its_data_in_folders_and_zips(small_data, tmp_path):
    assert is_synthetic(small_data)
    assert is_synthetic(small_data.parent)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(small_data / "PHANTOM.txt", "competition/PHANTOM.txt")
    assert is_synthetic(tmp_path / "data.zip")
    (tmp_path / "patients" / "stage_2_train").mkdir(parents=True)
    assert not is_synthetic(tmp_path / "patients")


def test_a_run_on_the_phantom_and_its_export_say_so(small_run, weights):
    for run in (small_run, Run(weights)):
        provenance = read_provenance(run)
        assert provenance["synthetic"]
        assert provenance["trained_on"] == "synthetic heads alone (kit phantom)"
        assert "weighted log loss 0." in provenance["figures"]
        assert describe_provenance(provenance).startswith(f"Warning: {SYNTHETIC}")
    assert read_json(weights / "kit-run.json")["provenance"]["synthetic"]


def test_the_terminal_and_the_page_say_it_first(small_run, small_data, tmp_path, capsys):
    out = tmp_path / "out.csv"
    flags = ["--run", str(small_run), "--out", str(out), "--report", "--workers", "1", "--quiet"]
    assert main(["predict", str(small_data / "stage_2_test"), *flags]) == 0
    assert capsys.readouterr().out.startswith(f"Warning: {SYNTHETIC}\nModel: recipe demo")
    assert read_json(out.with_suffix(".json"))["provenance"]["synthetic"]
    page = read_data(out.with_suffix(".html"))
    assert page["warning"] == SYNTHETIC
    assert ["model", "recipe demo"] in page["model"]


def test_a_runs_page_says_it_too(copied_run):
    page = read_data(write_report(copied_run))
    assert page["warning"] == SYNTHETIC
    assert dict(map(tuple, page["model"]))["trained on"] == "synthetic heads alone (kit phantom)"


def test_jupyter_shows_it_of_a_model(small_run):
    shown = load_model(small_run.path)._repr_html_()
    assert shown.index(SYNTHETIC) < shown.index("<tr><th>model</th><td>recipe demo</td></tr>")
    assert shown.endswith("Not a medical device.</p>")
    hostile = {"name": "<script>alert(1)</script>", "synthetic": False}
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td>" in present_provenance(hostile)
    assert SYNTHETIC not in present_provenance(hostile)


def test_a_run_on_patients_has_no_warning(tmp_path):
    run = Run(tmp_path)
    run.config.write_text('{"kit": "0.1.0", "data": "/x/rsna", "recipe": {"name": "single"}}')
    provenance = read_provenance(run)
    assert not provenance["synthetic"]
    assert list_facts(provenance)[0] == ["model", "recipe single"]
    assert "trained on the data rsna" in describe_provenance(provenance)
    assert "Warning" not in describe_provenance(provenance)


def test_weights_of_which_nothing_is_recorded_are_said_to_be_so(tmp_path):
    run = Run(tmp_path)
    run.config.write_text('{"recipe": {"name": "single"}}')  # an export of an early version
    assert describe_provenance(read_provenance(run)).startswith(f"Warning: {UNRECORDED}\nModel: ")
    shown = describe_model(run)
    assert (shown["warning"], shown["unknown"]) == (None, UNRECORDED)
    run.config.write_text('{"recipe": {"name": "single"}, "data": "/x/rsna"}')
    assert describe_model(run)["unknown"] is None


@pytest.mark.parametrize("name", ["figures", "licence"])
def test_what_is_not_known_is_said(name):
    facts = list_facts({"name": "x"})
    assert all(value == "not known" for label, value in facts if label != "model")
