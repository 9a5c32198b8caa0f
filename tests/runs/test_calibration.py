import json

import numpy as np
import pandas as pd
import pytest
from conftest import copy_run, predict_folder
from sklearn.metrics import log_loss

from kit import KitError
from kit.competition import LABELS
from kit.ensemble import MODELS, name_columns
from kit.evaluation.calibration import apply_temperature
from kit.evaluation.rates import choose_thresholds
from kit.files import read_json
from kit.runs.calibration import apply_calibration, calibrate_run, read_calibration
from kit.runs.directory import Run, RunError
from kit.runs.gathering import gather_files
from kit.runs.prediction import load_model, predict_gathered, write_predictions


def write_oof(run, temperature=2.0, seed=0):
    """Out-of-fold predictions of 40 patients of 10 slices; logits `temperature` times too large."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(400, 6)) * 1.5 - 1
    table = pd.DataFrame((random.random((400, 6)) < 1 / (1 + np.exp(-logits))).astype(int))
    table.columns = list(LABELS)
    names = np.repeat([f"p{number}" for number in range(40)], 10)
    for key in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"):
        table[key] = names
    table["SOPInstanceUID"] = [f"i{number}" for number in range(400)]
    for model in MODELS:
        table[name_columns(model)] = 1 / (1 + np.exp(-temperature * logits))
    table = table.assign(series=names, path="a.dcm", ImagePositionPatient=None, repaired=False)
    table[["seq", "position", "fold"]] = 0
    table.to_parquet(run.oof)
    return table


def test_temperatures_and_points_are_fixed_by_unit_on_out_of_fold_predictions(copied_run):
    table = write_oof(copied_run)
    document = calibrate_run(copied_run)
    assert read_json(copied_run.calibration) == document
    found = read_calibration(copied_run, "slice")
    for label in LABELS:
        assert found["temperatures"][label] == pytest.approx(2.0, rel=0.35)
        assert found["points"]["Youden"][label] == pytest.approx(
            choose_thresholds(table[label], table[f"bag_{label}"])["Youden"]
        )
    before = log_loss(table["any"], table["bag_any"])
    after = log_loss(
        table["any"], apply_temperature(table["bag_any"], found["temperatures"]["any"])
    )
    assert after < before
    by_patient = read_calibration(copied_run, "patient")
    maxima = table.groupby("PatientID")[["any", "bag_any"]].max()
    assert document["units"]["patient"]["n"] == 40
    assert by_patient["points"] != found["points"]
    expected = choose_thresholds(maxima["any"], maxima["bag_any"])
    assert {name: p["any"] for name, p in by_patient["points"].items() if "any" in p} == expected


def test_the_columns_of_a_table_are_calibrated(copied_run):
    table = write_oof(copied_run)
    calibrate_run(copied_run)
    temperature = read_calibration(copied_run, "series")["temperatures"]["subdural"]
    maxima = pd.DataFrame({f"{label}_maximum": table[f"bag_{label}"] for label in LABELS})
    found = apply_calibration(maxima, copied_run, "series", "_maximum")["subdural_maximum"]
    np.testing.assert_allclose(found, apply_temperature(table["bag_subdural"], temperature))


def test_a_calibration_of_other_predictions_is_refused(copied_run):
    with pytest.raises(RunError, match=r"calibration.json is missing: run `kit calibrate"):
        read_calibration(copied_run, "slice")
    calibrate_run(copied_run)
    write_oof(copied_run, seed=1)
    with pytest.raises(RunError, match="made of other predictions"):
        read_calibration(copied_run, "slice")


@pytest.mark.parametrize("text", ["{}", '{"units": {"slice": {"temperatures": []}}}', "[]", "x"])
def test_a_file_that_is_no_calibration_is_named(tmp_path, text):
    run = Run(tmp_path)
    run.calibration.write_text(text, encoding="utf-8")
    with pytest.raises(KitError, match=r"calibration\.json"):
        read_calibration(run, "slice")


def test_a_run_that_held_nothing_out_cannot_be_calibrated(copied_run):
    copied_run.oof.unlink()
    with pytest.raises(RunError, match="held nothing out"):
        calibrate_run(copied_run)


def test_predictions_are_calibrated_on_request_and_say_so(small_run, small_data, tmp_path):
    folder, run = small_data / "stage_2_test", copy_run(small_run, tmp_path / "run")
    calibrate_run(run)
    units = ("slice", "series", "study")
    points = {unit: read_calibration(run, unit)["temperatures"] for unit in units}
    with predict_gathered(gather_files(folder), load_model(run.path)) as found:
        for name, by, calibrated in (
            ("raw", "slice", False), ("slices", "slice", True),
            ("maxima", "series", False), ("series", "series", True),
            ("whole", "study", False), ("studies", "study", True),
        ):  # fmt: skip
            write_predictions(found, tmp_path / f"{name}.csv", by, 0.3, calibrated)
    tables = {
        name: pd.read_csv(tmp_path / f"{name}.csv")
        for name in ("raw", "slices", "maxima", "series", "whole", "studies")
    }
    for label in LABELS:
        np.testing.assert_allclose(
            tables["slices"][label],
            apply_temperature(tables["raw"][label], points["slice"][label]),
            rtol=1e-4,
        )
        np.testing.assert_allclose(
            tables["series"][f"{label}_maximum"],
            apply_temperature(tables["maxima"][f"{label}_maximum"], points["series"][label]),
            rtol=1e-4,
        )
        odds = tables["whole"][label] / (1 - tables["whole"][label])
        odds **= 1 / (points["study"][label] or 1)
        np.testing.assert_allclose(tables["studies"][label], odds / (1 + odds), rtol=1e-4)
        counted = (tables["slices"].groupby("SeriesInstanceUID")[label].max() >= 0.3).sum()
        assert (tables["series"][f"{label}_slices"] > 0).sum() == counted
    assert tables["slices"]["calibrated"].all()
    assert tables["series"]["calibrated"].all()
    assert tables["studies"]["calibrated"].all()
    assert "calibrated" not in tables["raw"]
    classifier = [f"classifier_{label}" for label in LABELS]
    np.testing.assert_array_equal(tables["slices"][classifier], tables["raw"][classifier])
    assert json.loads((tmp_path / "slices.json").read_text())["calibrated"] is True
    assert json.loads((tmp_path / "raw.json").read_text())["calibrated"] is False


def test_the_classifiers_own_probabilities_are_beside_the_bags(small_run, small_data, tmp_path):
    table, _ = predict_folder(small_data / "stage_2_test", small_run, tmp_path / "p.csv")
    expected = pd.read_parquet(small_run.test).set_index("SOPInstanceUID")
    found = table.set_index("SOPInstanceUID").loc[expected.index, name_columns("classifier")]
    np.testing.assert_allclose(found, expected[name_columns("classifier")], atol=2e-3)
