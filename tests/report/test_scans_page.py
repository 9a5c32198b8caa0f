"""The page of predictions for a folder of scans, and what is written beside it."""

import base64
import json
import shutil

import numpy as np
import pandas as pd
import pydicom
import pytest
from report_pages import decode_image, make_classifier, read_data, read_images

import kit
from kit.classifier import ClassifierConfig
from kit.cli.commands import main
from kit.competition import LABELS
from kit.ensemble import name_columns
from kit.report.gradcam import find_map_layer
from kit.report.scans_page import plan_images, write_scan_report
from kit.runs.prediction import Predictions, load_model
from kit.slices import index_slices
from kit.slices.series import describe_series


def make_predictions(folder, run):
    """Predictions of the first series in a folder, all of one half."""
    slices, skipped = index_slices(folder)
    slices = slices[slices["series"] == slices["series"].iloc[0]]
    described = describe_series(slices, skipped.iloc[:0])
    values = dict.fromkeys([*LABELS, *name_columns("classifier")], 0.5)
    table = slices.assign(**values, averaged=1)
    return Predictions(table, None, described, skipped.iloc[:0], load_model(run.path), 1.0)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1}),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "embed_dim": 24}),
    ],
)
def test_without_feature_maps_the_page_says_so(
    architecture, options, small_data, small_run, tmp_path, monkeypatch
):
    model = make_classifier(architecture, 64, **options)
    assert find_map_layer(model) is None
    monkeypatch.setattr("kit.report.scans_page.load_classifier", lambda path: model)
    found = make_predictions(small_data / "stage_2_test", small_run)
    page = write_scan_report(found, tmp_path / "page.html", "weights")
    data = read_data(page)
    assert data["unmapped"] == architecture
    assert data["series"][0]["maps"] is None
    assert decode_image(read_images(page)[0][0]).shape == (64, 64)


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
    # One rounding: a study's number is the highest of its series' slices, and the table's.
    shown = dict.fromkeys(rows["SeriesInstanceUID"])
    for study in data["studies"]:
        chosen = data["series"][study["chosen"]]
        for number in range(len(LABELS)):
            values = [p for p in chosen["probabilities"]["bag"][number] if p is not None]
            assert study["probabilities"][number] == max(values)
        shown[chosen["uid"]] = study["probabilities"][5]
    maxima = rows.set_index("SeriesInstanceUID")["any_maximum"]
    assert len(data["studies"]) == rows["StudyInstanceUID"].nunique()
    for uid, value in shown.items():
        assert value is None or value == pytest.approx(maxima[uid], abs=1e-6)


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1e9, (90, {"a", "b"})),
        (350, (85, {"a", "b"})),
        (250, (80, {"a", "b"})),
        (160, (90, {"a"})),
        (60, (80, {"a"})),
        (10, None),
    ],
)
def test_images_are_made_coarser_before_series_are_left_out_before_pages_are_split(
    monkeypatch, most, expected
):
    """Slices weigh 100, 75 and 50 characters at the three qualities."""
    weights = {90: 100, 85: 75, 80: 50}
    monkeypatch.setattr("kit.report.scans_page.IMAGE_CHARACTERS", most)
    monkeypatch.setattr(
        "kit.report.scans_page.weigh_slices", lambda paths, quality, repair: weights[quality]
    )
    slices = pd.DataFrame({"series": ["a", "b", "b", "b"], "path": "x"})
    studies = [{"chosen": "a", "scored": {"a": {}, "b": {}}}]
    assert plan_images(slices, studies, ClassifierConfig()) == expected


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
