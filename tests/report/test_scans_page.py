"""The page of predictions for a folder of scans, and what is written beside it."""

import base64
import json
import shutil

import numpy as np
import pandas as pd
import pydicom
import pytest
from report_pages import make_classifier, read_data

import kit
from kit.cli.commands import main
from kit.competition import LABELS
from kit.ensemble import name_columns
from kit.report.gradcam import find_map_layer
from kit.report.scans_page import write_scan_report
from kit.runs.prediction import Predictions, load_model


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1}),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "embed_dim": 24}),
    ],
)
def test_without_feature_maps_the_page_says_so(
    architecture, options, small_run, tmp_path, monkeypatch
):
    model = make_classifier(architecture, 64, **options)
    assert find_map_layer(model) is None
    monkeypatch.setattr("kit.report.scans_page.load_classifier", lambda path: model)
    table = pd.read_parquet(small_run.test).rename(
        columns=dict(zip(name_columns("bag"), LABELS, strict=True))
    )
    table = table[table["series"] == table["series"].iloc[0]].loc[:, ~table.columns.duplicated()]
    skipped = pd.DataFrame({"path": [], "reason": []})
    trained = load_model(small_run.path)
    predictions = Predictions(table, None, pd.DataFrame(), skipped, trained, 1.0)
    data = read_data(write_scan_report(predictions, tmp_path / "page.html", "weights"))
    assert data["unmapped"] == architecture
    assert data["series"][0]["maps"] is None
    assert data["series"][0]["images"][0].startswith("data:image/webp")


def test_predictions_of_scans_come_with_page_manifest_and_a_row_a_series(
    small_data, small_run, tmp_path
):
    out = tmp_path / "scans.csv"
    folder = small_data / "stage_2_test"
    table = kit.predict(folder, small_run.path, workers=1).assign(
        series=lambda t: t["PatientID"] + "/" + t["StudyInstanceUID"] + "/" + t["SeriesInstanceUID"]
    )
    command = ["predict", folder, "--run", small_run.path, "--out", out, "--workers", 1, "--quiet"]
    command += ["--by", "series", "--threshold", 0.3, "--report"]
    assert main([*map(str, command)]) == 0
    rows, skipped = pd.read_csv(out), pd.read_csv(tmp_path / "scans.skipped.csv")
    assert len(rows) == table["series"].nunique()
    assert rows["any_maximum"].max() == pytest.approx(table["any"].max(), rel=1e-5)
    assert rows["any_slices"].sum() == (table["any"] >= 0.3).sum()
    manifest = json.loads(out.with_suffix(".json").read_text())
    assert sum(manifest["skipped"].values()) == len(skipped)
    assert len(manifest["weights_sha256"]) == 2 * (1 + 2)  # two folds: a classifier, two LSTMs
    data = read_data(out.with_suffix(".html"))
    assert all(series["truth"] is None for series in data["series"])
    maps = data["series"][0]["maps"]
    size = len(data["series"][0]["x"]) * len(LABELS) * np.prod(maps["shape"])
    assert len(base64.b64decode(maps["bytes"])) == size
    assert [row["series"] for row in data["summary"]] == list(table["series"].unique())
    # One rounding: the list's number and the table's are the same.
    highest = {series["name"]: max(series["probabilities"]["bag"][5]) for series in data["series"]}
    assert highest == {row["series"]: row["any_maximum"] for row in data["summary"]}


def test_a_pseudonymized_page_names_no_folder_of_a_patient(small_data, small_run, tmp_path):
    folder = tmp_path / "scans" / "DOE^JANE"
    folder.mkdir(parents=True)
    slices = pd.read_parquet(small_run.slices)
    series = slices[slices["split"] == "test"].groupby("series").get_group
    part = series(slices[slices["split"] == "test"]["series"].iloc[0])
    for path in part["path"]:
        shutil.copy(path, folder)
    first = sorted(folder.iterdir())[0]
    shutil.copy(first, folder / "~again.dcm")
    repeated = pydicom.dcmread(first)
    repeated.InstitutionName = "elsewhere"
    repeated.save_as(folder / "~other.dcm")
    out = tmp_path / "out.csv"
    command = ["predict", tmp_path / "scans", "--run", small_run.path, "--out", out, "--report"]
    assert main([*map(str, command), "--pseudonymize", "--workers", "1", "--quiet"]) == 0
    for path in (out.with_suffix(".html"), out.with_suffix(".json")):
        text = path.read_text(encoding="utf-8")
        assert "DOE" not in text
        assert part["PatientID"].iloc[0] not in text
    assert read_data(out.with_suffix(".html"))["skipped"] == {
        "a copy of another file": 1,
        "repeats a SOPInstanceUID": 1,
    }
