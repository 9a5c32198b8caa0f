import json
import time

import numpy as np
import pandas as pd
import pytest
from command_line import check_told_at_once
from conftest import copy_run
from evaluation_files import write_studies
from sklearn.metrics import roc_auc_score

from kit.cli.commands import main
from kit.competition import read_labels
from kit.evaluation.comparison import POSITION
from kit.phantom.write import write_phantom


def call(capsys, *words):
    code = main([*map(str, words)])
    return code, capsys.readouterr()


@pytest.fixture(scope="module")
def new_patients(small_run, tmp_path_factory):
    """A calibrated run, and its predictions for a phantom of other patients, by slice."""
    work = tmp_path_factory.mktemp("new")
    write_phantom(work / "data", patients=18, size=64, seed=5)
    run = copy_run(small_run, work / "run")
    assert main(["calibrate", str(run), "--quiet"]) == 0
    command = ["predict", work / "data" / "stage_2_train", "--run", run, "--out", work / "p.csv"]
    assert main([*map(str, command), "--report", "--workers", "1", "--quiet"]) == 0
    return work


def test_the_phantom_is_evaluated_from_end_to_end(new_patients, capsys):
    work = new_patients
    labels = work / "data" / "stage_2_train.csv"
    code, printed = call(
        capsys, "evaluate", work / "p.csv", labels, "--preset", "rsna", "--run", work / "run",
        "--out", work / "slices", "--resamples", 100, "--prevalence", 0.1,
    )  # fmt: skip
    assert code == 0, printed.err
    assert "cases by slice" in printed.out
    assert "trained on none of these patients" in printed.out
    assert "Not a medical device" in printed.out
    table = pd.read_csv(work / "slices" / "table.csv")
    predicted = pd.read_csv(work / "p.csv").set_index("SOPInstanceUID")
    truth = read_labels(labels).loc[predicted.index]
    area = table[(table["finding"] == "any") & (table["interval"] == "DeLong")].iloc[0]
    assert area["value"] == pytest.approx(roc_auc_score(truth["any"], predicted["any"]), abs=1e-5)
    models = set(table.loc[table["section"] == "comparison", "model"])
    assert models == {"classifier alone − model", f"{POSITION} − model"}
    assert "weighted log loss" in set(table["measure"])
    assert "model, after temperature" in set(table["model"])
    groups = set(table.loc[table["section"] == "operating point", "group"])
    assert groups == {"Youden", "sensitivity 0.9", "specificity 0.9"}
    unmatched = pd.read_csv(work / "slices" / "unmatched.csv")
    skipped = pd.read_csv(work / "p.skipped.csv")
    assert len(unmatched) == len(skipped) == len(read_labels(labels)) - len(predicted)
    page = (work / "slices" / "evaluation.html").read_text(encoding="utf-8")
    assert 'href="../p.html#study=' in page


def test_the_same_predictions_are_evaluated_by_study(new_patients, capsys):
    work = new_patients
    labels = work / "data" / "stage_2_train.csv"
    code, printed = call(
        capsys, "evaluate", work / "p.csv", labels, "--preset", "rsna", "--unit", "study",
        "--out", work / "studies", "--resamples", 100, "--json",
    )  # fmt: skip
    assert code == 0, printed.err
    document = json.loads(printed.out)
    predicted = pd.read_csv(work / "p.csv")
    assert document["unit"] == "study"
    assert document["cases"] == predicted["StudyInstanceUID"].nunique()
    cases = pd.read_csv(work / "studies" / "cases.csv").set_index("StudyInstanceUID")
    highest = predicted.groupby("StudyInstanceUID")["any"].max()
    np.testing.assert_allclose(cases["model: any"], highest.loc[cases.index], rtol=1e-5)
    assert cases["series"].notna().all()


def test_a_runs_own_patients_stop_the_evaluation(new_patients, small_data, capsys, tmp_path):
    run, labels = new_patients / "run", small_data / "stage_2_train.csv"
    words = [run / "oof.parquet", labels, "--preset", "rsna", "--run", run, "--out", tmp_path / "o"]
    code, printed = call(capsys, "evaluate", *words)
    assert code == 1
    assert "--exclude-seen" in printed.err
    assert not (tmp_path / "o").exists()
    code, printed = call(capsys, "evaluate", *words, "--exclude-seen")
    assert code == 1
    assert "none is left" in printed.err


def test_out_of_fold_predictions_are_evaluated_with_all_their_models(small_run, capsys, tmp_path):
    code, printed = call(
        capsys, "evaluate", small_run.oof, small_run.oof, "--out", tmp_path / "o",
        "--resamples", 100,
    )  # fmt: skip
    assert code == 0, printed.err
    for name in ("classifier alone", "rolling mean", "LSTM, last epoch", POSITION):
        assert name in printed.out


def test_thresholds_maps_and_subgroups_are_flags(capsys, tmp_path):
    predictions, labels = write_studies(tmp_path, 60, site=["x", "y"] * 30)
    table = pd.read_csv(predictions).rename(columns={"any": "P=ICH", "StudyInstanceUID": "scan"})
    table[["scan", "P=ICH"]].to_csv(predictions, index=False)
    code, printed = call(
        capsys, "evaluate", predictions, labels, "--out", tmp_path / "out",
        "--columns", "StudyInstanceUID=scan", "any=P=ICH", "--threshold", 0.4, "any=0.3",
        "--youden", "--subgroup", "site", "--resamples", 100,
    )  # fmt: skip
    assert code == 0, printed.err
    found = pd.read_csv(tmp_path / "out" / "table.csv")
    points = found[(found["measure"] == "threshold") & (found["finding"] == "any")]
    assert points["group"].tolist()[:2] == ["0.4", "given"]
    assert points["value"].tolist()[:2] == [0.4, 0.3]
    assert "optimistic" in points["group"].iloc[2]
    assert "site: x" in set(found["group"])
    assert "Not evaluated, for want of labels or predictions: epidural" in printed.out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--threshold", "bleeding=0.3"], "'bleeding' is none of epidural"),
        (["--threshold", "high"], "'high' is no threshold"),
        (["--columns", "any"], "'any' is not NAME=COLUMN"),
        (["--unit", "head"], "invalid choice: 'head'"),
    ],
)
def test_wrong_flags_are_refused(capsys, words, reason):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "p.csv", "l.csv", "--out", "o", *words])
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--threshold", "any=0.3", "any=0.4"], "--threshold gives any twice"),
        (["--threshold", "0.3", "0.30"], "--threshold gives 0.3 twice"),
        (["--columns", "any=A", "any=B"], "--columns gives any twice"),
        (["--against-columns", "any=A", "any=B"], "--against-columns gives any twice"),
        (["--subgroup", "kernel", "site", "kernel"], "--subgroup names kernel twice"),
    ],
)
def test_what_is_given_twice_is_refused(capsys, tmp_path, words, reason):
    predictions, labels = write_studies(tmp_path, 30)
    code, printed = call(capsys, "evaluate", predictions, labels, "--out", tmp_path / "o", *words)
    assert code == 1
    assert printed.err == f"kit: {reason}\n"


@pytest.mark.parametrize("flag", ["", "--against", "--scans-page", "--run"])
def test_a_file_that_is_not_there_is_told_before_pandas_is_loaded(tmp_path, flag):
    predictions, labels = write_studies(tmp_path, 3)
    gone = tmp_path / "gone"
    words = ["evaluate", str(predictions), str(labels), "--out", str(tmp_path / "o")]
    words += [flag, str(gone)] if flag else []
    words[1] = words[1] if flag else str(gone)
    reason = "there is no run here" if flag == "--run" else "No such file or directory"
    check_told_at_once(words, 1, f"kit: {gone}: {reason}")


def test_five_hundred_studies_take_less_than_ten_seconds(capsys, tmp_path):
    """Of processor time, all threads together: with every table, figure and the page."""
    predictions, labels = write_studies(tmp_path, 500)
    started = time.process_time()
    assert call(capsys, "evaluate", predictions, labels, "--out", tmp_path / "o")[0] == 0
    assert time.process_time() - started < 10


def test_calibrate_prints_temperatures_and_points_by_unit(new_patients, capsys):
    code, printed = call(capsys, "calibrate", new_patients / "run")
    assert code == 0
    lines = printed.out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["slice", "series", "study", "patient"]
    assert "Youden" in lines[1]
    assert lines[-1].endswith("calibration.json")


def test_predict_says_that_it_calibrates_and_refuses_without_a_calibration(
    new_patients, small_run, capsys, tmp_path
):
    folder = new_patients / "data" / "stage_2_test"
    words = ["predict", folder, "--out", tmp_path / "p.csv", "--workers", "1", "--calibrated"]
    code, printed = call(capsys, *words, "--run", small_run)
    assert code == 1
    assert "kit calibrate" in printed.err
    assert not (tmp_path / "p.csv").exists()
    code, printed = call(capsys, *words, "--run", new_patients / "run")
    assert code == 0
    assert "Calibrated by the temperatures of the run" in printed.out
    assert pd.read_csv(tmp_path / "p.csv")["calibrated"].all()
