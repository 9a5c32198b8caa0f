from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from evaluation_files import make_cases
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from kit import InputError
from kit.competition import LABELS, weighted_log_loss
from kit.evaluation.delong import Z95, measure_areas
from kit.evaluation.inputs import WHOLE
from kit.evaluation.measures import CALIBRATED, FEW, measure_cases, split_groups
from kit.evaluation.settings import Settings

QUICK = Settings(points={"0.5": dict.fromkeys(LABELS, 0.5)}, resamples=200)


def find(table, **wanted):
    """The one statement that has these values."""
    rows = table
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1, rows
    return rows.iloc[0]


def test_every_number_of_a_finding_is_an_independent_librarys(tmp_path):
    cases = make_cases(tmp_path, 80)
    table = measure_cases(cases, QUICK)
    column = LABELS.index("subdural")
    labels, values = cases.labels[:, column], cases.models[WHOLE][:, column]
    for measure, expected in (
        ("n", 80),
        ("positives", labels.sum()),
        ("prevalence", labels.mean()),
    ):
        found = find(table, section="cases", finding="subdural", measure=measure)
        assert found["value"] == pytest.approx(expected)
    area = find(
        table, finding="subdural", model=WHOLE, measure="AUC", interval="DeLong",
        section="discrimination",
    )  # fmt: skip
    assert area["value"] == pytest.approx(roc_auc_score(labels, values), abs=1e-12)
    error = np.sqrt(measure_areas(labels, values[None], cases.patients)[1][0, 0])
    assert area["low"] == pytest.approx(area["value"] - Z95 * error)
    resampled = find(
        table, finding="subdural", model=WHOLE, measure="AUC", interval="bootstrap",
        section="discrimination",
    )  # fmt: skip
    assert resampled["value"] == pytest.approx(area["value"])
    assert resampled["low"] == pytest.approx(area["low"], abs=0.03)
    for measure, function in (
        ("average precision", average_precision_score),
        ("Brier score", brier_score_loss),
    ):
        found = table[(table["measure"] == measure) & (table["model"] == WHOLE)]
        found = found[found["finding"] == "subdural"].iloc[0]
        assert found["value"] == pytest.approx(function(labels, values))
        assert found["low"] < found["value"] < found["high"]
    cells = [
        find(table, finding="subdural", section="operating point", measure=name)["value"]
        for name in ("TP", "FP", "TN", "FN")
    ]
    called = values >= 0.5
    assert cells == [
        (called & (labels == 1)).sum(), (called & (labels == 0)).sum(),
        (~called & (labels == 0)).sum(), (~called & (labels == 1)).sum(),
    ]  # fmt: skip


def test_a_temperature_is_told_before_and_after_and_changes_no_order(tmp_path):
    cases = make_cases(tmp_path, 80)
    settings = replace(QUICK, temperatures=dict.fromkeys(LABELS, 2.0))
    table = measure_cases(cases, settings)
    any_column = cases.models[WHOLE][:, 5]
    odds = np.sqrt(any_column / (1 - any_column))
    for model, values in ((WHOLE, any_column), (CALIBRATED, odds / (1 + odds))):
        found = find(
            table, finding="any", model=model, measure="Brier score", section="calibration"
        )
        assert found["value"] == pytest.approx(brier_score_loss(cases.labels[:, 5], values))
        for measure in ("calibration intercept", "calibration slope", "ECE", "log loss"):
            find(table, finding="any", model=model, measure=measure, section="calibration")
    assert CALIBRATED not in set(table.loc[table["section"] == "discrimination", "model"])
    slopes = [
        find(table, finding="any", model=model, measure="calibration slope")["value"]
        for model in (WHOLE, CALIBRATED)
    ]
    assert slopes[1] == pytest.approx(2 * slopes[0], rel=1e-6)


def test_one_class_and_few_positives_are_told(tmp_path):
    cases = make_cases(tmp_path, 40)
    labels = cases.labels.copy()
    labels[:, 0] = 0
    labels[:, 1] = [1] * (FEW - 1) + [0] * (40 - FEW + 1)
    table = measure_cases(replace(cases, labels=labels), QUICK)
    area = table[(table["finding"] == "epidural") & (table["measure"] == "AUC")]
    assert area["value"].isna().all()
    assert "not defined: one class only" in set(area["note"])
    sensitivity = find(table, finding="epidural", measure="sensitivity", section="operating point")
    assert np.isnan(sensitivity["value"])
    assert sensitivity["note"] == "not defined"
    few = find(table, finding="intraparenchymal", measure="n", section="cases")
    assert few["note"] == "fewer than 10 of a class: intervals are unreliable"


def test_perfect_separation_has_an_area_without_an_interval(tmp_path):
    cases = make_cases(tmp_path, 40)
    models = {WHOLE: np.where(cases.labels == 1, 0.9, 0.1)}
    table = measure_cases(replace(cases, models=models), QUICK)
    area = find(table, finding="any", measure="AUC", interval="DeLong")
    assert area["value"] == 1
    assert np.isnan(area["low"])
    assert area["note"] == "interval not defined: perfect separation"
    table = measure_cases(replace(cases, models={WHOLE: np.full((40, 6), 0.5)}), QUICK)
    area = find(table, finding="any", measure="AUC", interval="DeLong")
    assert area["value"] == 0.5
    assert area["note"] == "interval not defined: all predictions are equal"


def test_a_single_patient_has_numbers_without_intervals(tmp_path):
    cases = make_cases(tmp_path, 40)
    table = measure_cases(replace(cases, patients=np.repeat("p", 40)), QUICK)
    found = table[(table["finding"] == "any") & table["interval"].isin(["DeLong", "bootstrap"])]
    assert found["value"].notna().all()
    assert found["low"].isna().all()


def test_subgroups_are_the_evaluations_of_their_parts(tmp_path):
    sites = ["x", "y"] * 40
    cases = make_cases(tmp_path, 80, site=sites)
    table = measure_cases(cases, replace(QUICK, subgroups=("site",)))
    part = np.array(sites) == "y"
    row = {"section": "subgroup", "group": "site: y", "finding": "any"}
    assert find(table, **row, measure="n")["value"] == 40
    area = find(table, **row, measure="AUC")
    labels, values = cases.labels[part, 5], cases.models[WHOLE][part, 5]
    assert area["value"] == pytest.approx(roc_auc_score(labels, values))
    found = find(table, **row, measure="sensitivity, 0.5")
    assert found["value"] == pytest.approx((values[labels == 1] >= 0.5).mean())


def test_many_numbers_are_cut_into_thirds_and_blanks_are_a_group():
    groups = split_groups(pd.DataFrame({"mm": [str(n / 2) for n in range(30)]}), "mm")
    assert [mask.sum() for mask in groups.values()] == [10, 10, 10]
    assert list(groups)[1].startswith("above 4.83")
    few = split_groups(pd.DataFrame({"mm": ["10", "5", "", "5"]}), "mm")
    assert {name: mask.tolist() for name, mask in few.items()} == {
        "5": [False, True, False, True],
        "10": [True, False, False, False],
        "unknown": [False, False, True, False],
    }
    mixed = [str(n / 2) for n in range(30)] + ["", "several values"]
    thirds = split_groups(pd.DataFrame({"mm": mixed}), "mm")
    assert [mask.sum() for mask in thirds.values()] == [10, 10, 10, 1, 1]
    assert list(thirds)[3:] == ["several values", "unknown"]
    with pytest.raises(InputError, match="no such column; there are mm"):
        split_groups(pd.DataFrame({"mm": ["1"]}), "kernel")
    with pytest.raises(InputError, match="30 values are too many groups"):
        split_groups(pd.DataFrame({"name": [f"n{n}" for n in range(30)]}), "name")


def test_slices_have_the_competitions_score_and_its_difference(tmp_path):
    cases = replace(make_cases(tmp_path, 60), unit="slice")
    table = measure_cases(cases, QUICK)
    scores = {
        model: weighted_log_loss(cases.labels, np.clip(values, 1e-5, 1 - 1e-5))
        for model, values in cases.models.items()
    }
    for model, score in scores.items():
        found = find(table, model=model, measure="weighted log loss")
        assert found["value"] == pytest.approx(score)
        assert found["low"] < score < found["high"]
    other = find(table, model=f"classifier alone − {WHOLE}", measure="weighted log loss")
    assert other["value"] == pytest.approx(scores["classifier alone"] - scores[WHOLE])
    by_study = measure_cases(make_cases(tmp_path, 60), QUICK)
    assert "weighted log loss" not in set(by_study["measure"])
