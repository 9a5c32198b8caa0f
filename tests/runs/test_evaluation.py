from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from evaluation_files import draw_studies, write_reads, write_studies

from kit import InputError
from kit.competition import LABELS
from kit.evaluation.inputs import WHOLE
from kit.evaluation.settings import Settings
from kit.files import read_json, write_json
from kit.runs.calibration import calibrate_run
from kit.runs.directory import Run
from kit.runs.evaluation import Sources, evaluate_files
from kit.runs.patients import write_patients

QUICK = Settings(resamples=100)


@pytest.fixture
def trained(copied_run):
    """A run with a calibration that was trained on patients p0 and p1."""
    calibrate_run(copied_run)
    write_patients(copied_run, pd.DataFrame({"PatientID": ["p0", "p1"], "split": "train"}))
    return copied_run


def test_without_points_and_run_the_threshold_is_one_half(tmp_path):
    predictions, labels = write_studies(tmp_path, 40)
    evaluation = evaluate_files(Sources(predictions, labels), QUICK)
    assert evaluation.cases.unit == "study"
    assert evaluation.settings.points == {"0.5": dict.fromkeys(LABELS, 0.5)}
    assert "No run was given" in evaluation.cases.notes[-1]
    assert list(evaluation.cases.models) == [WHOLE, "classifier alone"]
    assert evaluation.files["labels"].startswith("labels.csv (sha256 ")


def test_the_run_gives_points_and_temperatures_and_knows_its_patients(tmp_path, trained):
    predictions, labels = write_studies(tmp_path, 40)
    sources = Sources(predictions, labels, run=trained)
    with pytest.raises(InputError, match=r"trained on 2 of the 40 patients.*--exclude-seen"):
        evaluate_files(sources, QUICK)
    given = replace(QUICK, points={"mine": {"any": 0.3}})
    evaluation = evaluate_files(replace(sources, exclude_seen=True), given)
    assert len(evaluation.cases.ids) == 38
    assert {"Youden", "sensitivity 0.9", "mine"} <= set(evaluation.settings.points)
    assert set(evaluation.settings.temperatures) == set(LABELS)
    assert "0.5" not in evaluation.settings.points
    assert "(2 of 40 rows by study)" in evaluation.cases.notes[-1]


def test_a_run_that_does_not_know_its_patients_says_so(tmp_path, trained):
    trained.patients.unlink()
    trained.slices.unlink()
    predictions, labels = write_studies(tmp_path, 40)
    evaluation = evaluate_files(Sources(predictions, labels, run=trained), QUICK)
    assert "does not say which patients" in evaluation.cases.notes[-1]
    assert len(evaluation.cases.ids) == 40


def test_an_imported_classifier_may_have_seen_anybody_and_that_is_said(tmp_path, trained):
    config = read_json(trained.config)
    write_json(trained.config, config | {"provenance": {"files": {}}})
    predictions, labels = write_studies(tmp_path, 40)
    sources = Sources(predictions, labels, run=trained, exclude_seen=True)
    notes = evaluate_files(sources, QUICK).cases.notes
    assert "2 patients (2 of 40 rows by study)" in notes[-2]
    assert notes[-1].startswith("The run's classifier was trained elsewhere: whether it has seen")


def test_predictions_are_not_calibrated_twice(tmp_path, trained):
    predictions, labels = write_studies(tmp_path, 40)
    pd.read_csv(predictions).assign(calibrated=True).to_csv(predictions, index=False)
    with pytest.raises(InputError, match="is calibrated already"):
        evaluate_files(Sources(predictions, labels, run=trained), QUICK)
    assert evaluate_files(Sources(predictions, labels), QUICK)


def test_two_files_are_compared_in_pairs(tmp_path):
    predictions, labels = write_studies(tmp_path, 60)
    _, other = draw_studies(60, seed=9)
    table = pd.DataFrame({"scan": [f"1.2.{number}" for number in range(50)], "P": other[:50, 5]})
    table.to_csv(tmp_path / "other.csv", index=False)
    columns = {"StudyInstanceUID": "scan", "any": "P"}
    sources = Sources(predictions, labels, against=tmp_path / "other.csv", against_columns=columns)
    evaluation = evaluate_files(sources, QUICK)
    assert len(evaluation.cases.ids) == 50
    assert len(evaluation.cases.unmatched) == 10
    rows = evaluation.statements[evaluation.statements["section"] == "comparison"]
    pairs = rows[rows["model"] == f"other.csv − {WHOLE}"]
    assert set(pairs["finding"]) == {"any"}
    assert np.isfinite(pairs.loc[pairs["interval"] == "DeLong", "p"]).all()


def test_cq500_is_evaluated_by_its_readers_majority(tmp_path):
    majority = write_reads(tmp_path / "reads.csv", 50)
    _, values = draw_studies(50)
    ids = {"PatientID": [f"CQ500CT{number} CQ500CT{number}" for number in range(50)]}
    table = pd.DataFrame(ids).join(pd.DataFrame(values, columns=list(LABELS)))
    table.to_csv(tmp_path / "p.csv", index=False)
    sources = Sources(tmp_path / "p.csv", tmp_path / "reads.csv", "cq500")
    evaluation = evaluate_files(sources, replace(QUICK, subgroups=("Category",)))
    np.testing.assert_array_equal(evaluation.cases.labels, majority)
    rows = evaluation.statements
    kappas = rows[rows["measure"] == "Fleiss' kappa"]
    assert len(kappas) == 6
    assert kappas["value"].between(0.5, 1).all()
    assert {"Category: B1", "Category: B2"} <= set(rows["group"])


def test_a_run_directory_without_calibration_is_named(tmp_path):
    predictions, labels = write_studies(tmp_path, 40)
    with pytest.raises(ValueError, match="kit calibrate"):
        evaluate_files(Sources(predictions, labels, run=Run(tmp_path)), QUICK)
