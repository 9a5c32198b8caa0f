"""The out-of-fold score in `metrics.json`, and files that no run wrote."""

import json

import pytest

from kit import InputError
from kit.kaggle.ledger import describe_submission
from kit.runs.metrics import read_out_of_fold


def test_the_out_of_fold_score_is_the_bags_over_all_folds(tmp_path):
    path = tmp_path / "metrics.json"
    assert read_out_of_fold(path) is None
    scores = {
        "lstm": {"all": {"any": 0.3, "weighted": 0.08}},
        "bag": {"all": {"any": 0.1, "weighted": 0.0571}, "0": {"any": 0.2, "weighted": 0.06}},
    }
    path.write_text(json.dumps({"scores": scores}))
    assert read_out_of_fold(path) == 0.0571
    path.write_text(json.dumps({"scores": {}}))
    assert read_out_of_fold(path) is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"scores": {"lstm": {}}}'])
def test_metrics_that_no_run_wrote_are_named(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(InputError, match=r"metrics\.json: this is not what a run writes"):
        describe_submission(tmp_path / "submission.csv", b"x", "message", "c")
