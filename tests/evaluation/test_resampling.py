import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from kit.evaluation import resampling
from kit.evaluation.resampling import draw_patients, summarize, trace_weighted, weigh_measures


def test_measures_under_weights_are_scikit_learns():
    random = np.random.default_rng(0)
    labels, probabilities = random.integers(0, 2, 60), np.round(random.random(60), 1)
    weights = random.integers(0, 4, (5, 60)).astype(float)
    found = weigh_measures(labels, probabilities, weights, {"half": 0.5})
    for number, weight in enumerate(weights):
        expected = {
            "AUC": roc_auc_score(labels, probabilities, sample_weight=weight),
            "average precision": average_precision_score(
                labels, probabilities, sample_weight=weight
            ),
            "Brier score": brier_score_loss(labels, probabilities, sample_weight=weight),
            "log loss": log_loss(
                labels, np.clip(probabilities, 1e-5, 1 - 1e-5), sample_weight=weight
            ),
            "sensitivity, half": np.average(
                probabilities[labels == 1] >= 0.5, weights=weight[labels == 1]
            ),
            "specificity, half": np.average(
                probabilities[labels == 0] < 0.5, weights=weight[labels == 0]
            ),
        }
        for name, value in expected.items():
            assert found[name][number] == pytest.approx(value, abs=1e-12), name


def test_a_resample_of_one_class_has_no_area():
    weights = np.array([[1.0, 0.0], [1.0, 1.0]])
    found = weigh_measures(np.array([0, 1]), np.array([0.2, 0.8]), weights, {})
    assert np.isnan(found["AUC"][0])
    assert found["AUC"][1] == 1


def test_whole_patients_are_drawn():
    patients = np.array(["a", "b", "a", "c", "c", "c"])
    drawn = np.concatenate(list(draw_patients(patients, 500, seed=1)))
    assert drawn.shape == (500, 6)
    assert (drawn[:, 0] == drawn[:, 2]).all()
    assert (drawn[:, 3] == drawn[:, 5]).all()
    assert (drawn[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(6), abs=0.15)


def test_pieces_are_those_of_one_draw(monkeypatch):
    whole = np.concatenate(list(draw_patients(np.arange(9), 50, seed=2)))
    monkeypatch.setattr(resampling, "_CELLS", 60)
    pieces = list(draw_patients(np.arange(9), 50, seed=2))
    assert len(pieces) > 5
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_rows_that_reach_a_value_are_summed_from_the_highest():
    positive, negative = np.array([[1.0, 0.0, 2.0]]), np.array([[0.0, 1.0, 1.0]])
    true, false = trace_weighted(positive, negative, np.array([0.1, 0.1, 0.9]))
    assert true.tolist() == [[0, 2, 3]]
    assert false.tolist() == [[0, 1, 2]]


def test_an_interval_is_told_or_said_not_to_be_defined():
    rate, note = summarize(0.5, np.linspace(0, 1, 1001))
    assert (rate.low, rate.high) == pytest.approx((0.025, 0.975))
    assert note == ""
    rate, note = summarize(0.5, np.r_[np.nan, np.linspace(0, 1, 99)])
    assert np.isfinite(rate.low)
    assert note == "1 of 100 resamples had one class and were left out"
    for values, reason in (
        (np.r_[[np.nan] * 10, np.linspace(0, 1, 90)], "too few patients"),
        (np.ones(100), "all resamples are equal"),
    ):
        rate, note = summarize(1.0, values)
        assert np.isnan(rate.low)
        assert reason in note
