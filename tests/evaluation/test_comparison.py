from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from evaluation_files import make_cases
from sklearn.metrics import brier_score_loss, roc_auc_score

from kit.competition import LABELS
from kit.evaluation.comparison import POSITION, add_position, compare_models
from kit.evaluation.delong import compare_areas, measure_areas
from kit.evaluation.inputs import WHOLE
from kit.evaluation.measures import measure_cases
from kit.evaluation.settings import Settings, list_findings


def test_the_classifier_alone_is_compared_by_delong_and_bootstrap(tmp_path):
    cases = make_cases(tmp_path, 100)
    settings = Settings(points={"0.5": dict.fromkeys(LABELS, 0.5)}, resamples=400)
    table = measure_cases(cases, settings)
    rows = table[(table["section"] == "comparison") & (table["finding"] == "any")]
    assert set(rows["model"]) == {f"classifier alone − {WHOLE}"}
    labels = cases.labels[:, 5]
    pair = np.stack([cases.models[WHOLE][:, 5], cases.models["classifier alone"][:, 5]])
    tested = rows[rows["interval"] == "DeLong"].iloc[0]
    expected = compare_areas(*measure_areas(labels, pair, cases.patients))
    np.testing.assert_allclose(tested[["value", "low", "high", "p"]].astype(float), expected)
    assert tested["value"] == pytest.approx(
        roc_auc_score(labels, pair[1]) - roc_auc_score(labels, pair[0])
    )
    brier = rows[rows["measure"] == "Brier score"].iloc[0]
    difference = brier_score_loss(labels, pair[1]) - brier_score_loss(labels, pair[0])
    assert brier["value"] == pytest.approx(difference)
    # Paired: the interval is that of the differences of cases, not of two samples.
    per_case = (pair[1] - labels) ** 2 - (pair[0] - labels) ** 2
    assert brier["high"] - brier["low"] == pytest.approx(
        2 * 1.96 * per_case.std() / np.sqrt(100), rel=0.2
    )
    assert {"sensitivity, 0.5", "specificity, 0.5", "average precision"} <= set(rows["measure"])


def test_a_model_that_predicts_the_same_has_a_difference_of_zero_without_p(tmp_path):
    cases = make_cases(tmp_path, 30)
    cases = replace(cases, models={WHOLE: cases.models[WHOLE], "same": cases.models[WHOLE]})
    finding = list_findings(cases, Settings())[0]
    values = {key: {"AUC": 0.75} for key in finding.models}
    resampled = {key: {"AUC": np.linspace(0.7, 0.8, 100)} for key in finding.models}
    rows = compare_models(finding, values, resampled)
    assert [row["value"] for row in rows] == [0, 0]
    assert rows[0]["note"] == "interval and p not defined"
    assert rows[1]["note"] == "interval not defined: all resamples are equal"


def make_slices(tmp_path):
    """40 patients of 10 slices; those of the lower half bleed more often."""
    cases = make_cases(tmp_path, 400)
    random = np.random.default_rng(0)
    places = np.tile(np.arange(10) / 9, 40)
    labels = (random.random((400, 6)) < np.where(places < 0.5, 0.6, 0.1)[:, None]).astype(float)
    details = pd.DataFrame({"relative_position": places})
    patients = np.repeat([f"p{number}" for number in range(40)], 10)
    return replace(cases, unit="slice", labels=labels, patients=patients, details=details)


def test_position_alone_knows_where_bleeding_is_usual(tmp_path):
    cases = make_slices(tmp_path)
    predicted = add_position(cases).models[POSITION]
    lower = cases.details["relative_position"] < 0.5
    assert predicted[lower].mean() == pytest.approx(0.6, abs=0.05)
    assert predicted[~lower].mean() == pytest.approx(0.1, abs=0.05)


def test_position_alone_does_not_see_the_patient_it_predicts(tmp_path):
    cases = make_slices(tmp_path)
    before = add_position(cases).models[POSITION]
    changed = cases.labels.copy()
    changed[cases.patients == "p7"] = 1 - changed[cases.patients == "p7"]
    after = add_position(replace(cases, labels=changed)).models[POSITION]
    own = cases.patients == "p7"
    # All rows are scaled alike, by the share of positives among all.
    before, after = before / cases.labels.mean(axis=0), after / changed.mean(axis=0)
    np.testing.assert_allclose(before[own], after[own], rtol=1e-12)
    assert (before[~own] != after[~own]).any()


def test_position_alone_is_not_worse_than_chance_where_it_says_nothing(tmp_path):
    """Bleeding runs in patients, not in places: an area of .5. By plain shares it was .447."""
    cases, areas = make_slices(tmp_path), []
    for seed in range(20):
        random = np.random.default_rng(seed)
        own = random.choice([0.05, 0.5], 40)[:, None]
        labels = np.repeat((random.random((40, 10)) < own).reshape(400, 1), 6, axis=1).astype(float)
        predicted = add_position(replace(cases, labels=labels)).models[POSITION]
        areas.append(roc_auc_score(labels[:, 5], predicted[:, 5]))
    assert np.mean(areas) == pytest.approx(0.5, abs=0.03)


def test_position_is_left_out_and_said_where_a_place_is_unknown(tmp_path):
    cases = make_slices(tmp_path)
    cases.details.loc[3, "relative_position"] = np.nan
    found = add_position(cases)
    assert POSITION not in found.models
    assert found.notes[-1] == "No baseline of position: in 1 of 400 slices seq is no number."


def test_studies_have_no_position(tmp_path):
    cases = make_slices(tmp_path)
    assert POSITION not in add_position(replace(cases, unit="study")).models
    assert POSITION not in add_position(replace(cases, patients=np.repeat("p", 400))).models
    labels = cases.labels.copy()
    labels[:, 0] = np.nan
    assert np.isnan(add_position(replace(cases, labels=labels)).models[POSITION][:, 0]).all()
