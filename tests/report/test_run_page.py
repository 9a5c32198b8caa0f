"""The page of a run: what it reports, which series it shows, and a series in a notebook."""

import json

import numpy as np
import pandas as pd
import pytest
from report_pages import decode_image, read_data, read_images, restore_hounsfield

import kit
from kit.cli.commands import main
from kit.competition import LABELS
from kit.dicom import read_hounsfield
from kit.ensemble import MODELS, name_columns, score
from kit.report.run_page import find_commit, find_series, write_report
from kit.runs.directory import Run, RunError
from kit.runs.scans import count_reasons


def test_the_report_holds_the_runs_scores_and_says_what_it_is(small_run):
    path = write_report(small_run)
    text = path.read_text(encoding="utf-8")
    data, scores = read_data(path), json.loads(small_run.metrics.read_text())["scores"]
    assert path == small_run.report
    assert "Not a medical device" in text
    for model in MODELS:
        for part, losses in scores[model].items():
            triples = np.array(data["scores"][model][part])
            np.testing.assert_allclose(triples[:, 0], list(losses.values()), atol=1e-6)
            assert (triples[:, 1] <= triples[:, 0] + 1e-6).all()
            assert (triples[:, 0] <= triples[:, 2] + 1e-6).all()
    slices, oof = pd.read_parquet(small_run.slices), pd.read_parquet(small_run.oof)
    slices = slices[slices["split"] == "train"].set_index("fold")[list(LABELS)]
    by_fold = {fold: slices.drop(fold).mean().to_numpy() for fold in oof["fold"].unique()}
    expected = score(
        oof[list(LABELS)].to_numpy(), np.array([by_fold[fold] for fold in oof["fold"]])
    )
    prior = [triple[0] for triple in data["scores"]["prior"]["all"]]
    np.testing.assert_allclose(prior, list(expected.values()), atol=1e-6)
    worse = scores["bag"]["all"]["weighted"] > scores["classifier"]["all"]["weighted"]
    assert bool(data["setback"]) == worse
    data_path = json.loads(small_run.config.read_text())["data"]
    assert data_path not in text
    assert ["data", "data"] in data["facts"]
    assert {history["kind"] for history in data["histories"]} == {"classifier", "LSTM"}
    assert all(len(h["validation"]) == 2 for h in data["histories"] if h["kind"] == "LSTM")


def test_the_report_counts_what_was_run_and_names_what_ran_it(small_run):
    data = read_data(write_report(small_run))
    facts, written = dict(data["facts"]), dict(data["written"])
    slices = pd.read_parquet(small_run.slices)
    for split, name in (("train", "training part"), ("test", "test part")):
        part = slices[slices["split"] == split]
        series, patients = part["series"].nunique(), part["PatientID"].nunique()
        assert facts[name] == f"{len(part)} slices of {patients} patients in {series} series"
    skipped = pd.read_csv(small_run.skipped)
    assert facts["files skipped"] == str(len(skipped))
    assert data["skipped"] == count_reasons(skipped)
    assert facts["classifier"] == "resnext50_32x4d, 64 pixels, 1 epoch"
    assert facts["started with"] == f"kit {kit.__version__}"
    assert "kit" not in facts
    assert written["kit"].startswith(kit.__version__)
    assert {"timm", "pydicom", "torch", "processor"} <= written.keys()


def test_the_report_says_how_many_intercepts_were_corrected(copied_run):
    slices = pd.read_parquet(copied_run.slices)
    expected = {0: "in no file", 1: "in 1 file, corrected", 3: "in 3 files, corrected"}
    for wrong, text in expected.items():
        slices["repaired"] = np.arange(len(slices)) < wrong
        slices.to_parquet(copied_run.slices)
        facts = dict(read_data(write_report(copied_run))["facts"])
        assert facts["wrong rescale intercept"] == text


def test_the_report_shows_each_series_with_truth_and_windows(small_run):
    path = write_report(small_run)
    data = read_data(path)
    oof = pd.read_parquet(small_run.oof)
    assert {series["name"] for series in data["series"]} == set(oof["series"])
    shown = data["series"][0]
    part = oof[oof["series"] == shown["name"]]
    assert np.array_equal(shown["truth"], part[list(LABELS)].to_numpy().T)
    for model in MODELS:
        values = part[name_columns(model)].to_numpy().T
        np.testing.assert_allclose(shown["probabilities"][model], values, atol=5e-7)
    np.testing.assert_allclose(shown["x"], part["position"] - part["position"].min(), atol=0.006)
    levels = decode_image(read_images(path)[0][0])
    hounsfield = read_hounsfield(part["path"].iloc[0])
    assert levels.shape == hounsfield.shape == (64, 64)
    brain = (hounsfield > 0) & (hounsfield < 80)
    assert np.abs(restore_hounsfield(levels) - hounsfield)[brain].mean() < 3


def test_a_run_without_held_out_slices_shows_the_test_part_without_truth(copied_run):
    copied_run.oof.unlink()
    data = read_data(write_report(copied_run))
    assert "scores" not in data
    assert all(series["truth"] is None for series in data["series"])
    names = set(pd.read_parquet(copied_run.test)["series"])
    assert {series["name"] for series in data["series"]} == names
    highest = [max(series["probabilities"]["bag"][5]) for series in data["series"]]
    assert len(highest) == len(names)


@pytest.mark.parametrize(
    "name", ["oof.parquet", "skipped.csv", "timings.json", "fold0/classifier/history.json"]
)
def test_a_damaged_file_of_a_run_is_named(copied_run, name):
    path = copied_run.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('"' if name.endswith(".csv") else "[1]")
    with pytest.raises(RunError, match=f"{name}: not "):
        write_report(copied_run)


def test_a_slice_whose_file_is_gone_is_shown_with_its_reason(copied_run):
    oof = pd.read_parquet(copied_run.oof)
    oof.loc[0, "path"] = "/nowhere/slice.dcm"
    oof.to_parquet(copied_run.oof)
    data = read_data(write_report(copied_run))
    (number,) = [n for n, s in enumerate(data["series"]) if s["name"] == oof["series"][0]]
    assert data["series"][number]["reasons"] == {"0": "No such file or directory"}
    first, second, *_ = read_images(copied_run.report)[number]
    assert first == ""
    assert decode_image(second).shape == (64, 64)


def test_a_series_is_found_by_a_part_of_its_name_that_no_other_has():
    table = pd.DataFrame({"series": ["a/1/x", "a/1/x", "a/1/xy", "b/2/z"]})
    assert find_series(table, "a/1/x") == "a/1/x"
    assert find_series(table, "b/") == "b/2/z"
    with pytest.raises(ValueError, match="2 of the 3 series"):
        find_series(table, "a/1")
    with pytest.raises(ValueError, match="none of the 3 series"):
        find_series(table, "c")


def test_a_named_series_is_on_the_page_first(small_run, capsys):
    name = pd.read_parquet(small_run.oof)["series"].unique()[3]
    assert main(["report", str(small_run), "--series", name, "--quiet"]) == 0
    data = read_data(small_run.report)
    assert data["series"][0]["name"] == name
    assert data["named"] is True
    assert main(["report", str(small_run), "--series", "nobody", "--quiet"]) == 1
    assert "nobody" in capsys.readouterr().err


def test_the_commit_is_that_of_the_checkout_or_none():
    commit = find_commit()
    assert commit is None or (len(commit) == 12 and int(commit, 16) >= 0)


def test_where_there_is_no_run_nothing_is_said_of_its_stages(tmp_path, capsys):
    for command in (["explain", str(tmp_path / "none"), "x"], ["report", str(tmp_path / "none")]):
        assert main(command) == 1
        assert "there is no run here" in capsys.readouterr().err


def test_an_explanations_file_name_holds_no_separator(tmp_path):
    assert Run(tmp_path).explanation("../a b").name == "explain_.._a_b.html"
    assert Run(tmp_path).explanation("../a b").parent == tmp_path
