from dataclasses import replace

import numpy as np
import pytest
from evaluation_files import make_cases

from kit import InputError
from kit.competition import LABELS
from kit.evaluation.inputs import WHOLE
from kit.evaluation.rates import Rate, choose_thresholds
from kit.evaluation.settings import COLUMNS, FINDINGS, OPTIMISTIC, Settings, list_findings, state


def test_findings_have_known_labels_and_models_that_predict_them(tmp_path):
    cases = make_cases(tmp_path, 10)
    labels, classifier = cases.labels.copy(), cases.models["classifier alone"].copy()
    labels[:4, LABELS.index("epidural")] = np.nan
    labels[:, LABELS.index("subdural")] = np.nan
    classifier[:, LABELS.index("any")] = np.nan
    models = {**cases.models, "classifier alone": classifier}
    found = {
        f.name: f for f in list_findings(replace(cases, labels=labels, models=models), Settings())
    }
    assert list(found) == [name for name in FINDINGS if name != "subdural"]
    assert next(iter(found)) == "any"
    assert list(found["any"].models) == [WHOLE]
    assert found["epidural"].cases.ids.tolist() == cases.ids[4:].tolist()
    assert found["epidural"].labels.tolist() == labels[4:, 0].tolist()


def test_no_finding_at_all_is_refused(tmp_path):
    cases = make_cases(tmp_path, 10)
    with pytest.raises(InputError, match="no finding has both"):
        list_findings(replace(cases, labels=cases.labels * np.nan), Settings())


def test_a_threshold_of_the_set_itself_is_called_optimistic(tmp_path):
    cases = make_cases(tmp_path, 40)
    settings = Settings(points={"mine": {"any": 0.3}}, youden=True)
    finding = list_findings(cases, settings)[0]
    best = choose_thresholds(finding.labels, finding.models[WHOLE])["Youden"]
    assert finding.points == {"mine": 0.3, OPTIMISTIC: best}
    assert "optimistic" in OPTIMISTIC
    assert list_findings(cases, replace(settings, youden=False))[1].points == {}


def test_a_statement_has_every_column():
    row = state("calibration", WHOLE, "any", "ECE", Rate(0.1, 0.0, 0.2), note="x")
    assert list(row) == COLUMNS
    assert (row["value"], row["low"], row["high"], row["note"]) == (0.1, 0.0, 0.2, "x")
    assert np.isnan(row["p"])


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"prevalence": 1.0}, "prevalence 1 is not between 0 and 1"),
        ({"resamples": 10}, "10 resamples are too few"),
        ({"points": {"x": {"any": 1.5}}}, "threshold 1.5 of any is no probability"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, reason):
    with pytest.raises(InputError, match=reason):
        Settings(**wrong)
