from dataclasses import replace

import numpy as np
import pandas as pd
from evaluation_files import make_cases

from kit.competition import LABELS
from kit.evaluation.methods import describe_methods, evaluate, list_limits, list_versions
from kit.evaluation.settings import Settings

FILES = {"predictions": "p.csv (sha256 1)", "labels": "l.csv (sha256 2)"}
SETTINGS = Settings(points={"0.5": dict.fromkeys(LABELS, 0.5)}, resamples=100, seed=7)


def test_the_methods_say_what_was_done(tmp_path):
    settings = replace(
        SETTINGS, youden=True, temperatures=dict.fromkeys(LABELS, 1.5), subgroups=("site",)
    )
    cases = make_cases(tmp_path, 40, site=["x", "y"] * 20)
    text = describe_methods(evaluate(cases, settings, {}, FILES))
    for words in (
        "The unit of analysis was the study: 40 studies of 40 patients",
        "index test", "reference standard", "p.csv (sha256 1)",
        "maximum over its slices", "fixed beforehand: 0.5", "optimistic",
        "DeLong's", "100 resamples, seed 7", "Wilson's", "one temperature for each finding",
        "Paired comparisons with classifier alone", "Subgroups by site",
        *(f"{name} {number}" for name, number in list_versions().items()),
    ):  # fmt: skip
        assert words in text
    assert "Obuchowski" not in text
    assert text.count("\n") == 1


def test_several_rows_of_a_patient_are_said_to_be_clustered(tmp_path):
    cases = replace(make_cases(tmp_path, 40), patients=np.repeat(np.arange(20), 2))
    text = describe_methods(evaluate(cases, SETTINGS, {}, FILES))
    assert "40 studies of 20 patients" in text
    assert "Obuchowski" in text
    assert "temperature" not in text


def test_limits_name_what_was_left_out(tmp_path):
    cases = make_cases(tmp_path, 40)
    labels = cases.labels.copy()
    labels[:3, 5] = np.nan
    labels[:, 0] = np.nan
    labels[:, 1] = 0
    unmatched = pd.DataFrame(
        {"id": list("abc"), "unit": "study", "found_in": ["labels", "labels", "predictions"]}
    )
    details = cases.details.assign(series="s", series_count=[2] * 5 + [1] * 35)
    cases = replace(
        cases, labels=labels, unmatched=unmatched, details=details, notes=["Said before."]
    )
    limits = list_limits(evaluate(cases, SETTINGS, {}, FILES))
    assert limits[0] == "Said before."
    text = " ".join(limits)
    assert "2 by study in the labels alone (a, b), 1 by study in the predictions alone (c)" in text
    assert "Not evaluated, for want of labels or predictions: epidural." in text
    assert "any: 3 missing labels left out." in text
    few = next(limit for limit in limits if limit.startswith("Fewer than ten"))
    assert "intraparenchymal" in few
    assert "subdural" not in few
    assert "5 of 40 had several series" in text


def test_the_readers_agreement_is_told_beside_the_counts(tmp_path):
    evaluation = evaluate(make_cases(tmp_path, 40), SETTINGS, {"any": 0.81}, FILES)
    rows = evaluation.statements
    found = rows[rows["measure"] == "Fleiss' kappa"]
    assert found[["section", "finding", "value"]].values.tolist() == [["cases", "any", 0.81]]
