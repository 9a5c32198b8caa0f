import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from kit.evaluation.delong import Z95, compare_areas, find_interval, measure_areas


def draw_scores(seed, rows=40, models=2):
    """Labels and scores with many ties."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, rows)
    labels[:2] = 0, 1
    return labels, np.round(random.random((models, rows)) + labels * 0.3, 1)


def count_pairs(labels, scores):
    """The area and the components by all pairs of a positive and a negative row."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    wins = np.array([[(p > n) + 0.5 * (p == n) for n in negative] for p in positive])
    return wins.mean(), wins.mean(axis=1), wins.mean(axis=0)


@pytest.mark.parametrize("seed", range(20))
def test_areas_and_covariance_are_those_of_all_pairs(seed):
    labels, scores = draw_scores(seed, models=3)
    areas, covariance = measure_areas(labels, scores, np.arange(len(labels)))
    found = [count_pairs(labels, score) for score in scores]
    np.testing.assert_allclose(areas, [area for area, _, _ in found], atol=1e-12)
    np.testing.assert_allclose(areas, [roc_auc_score(labels, s) for s in scores], atol=1e-12)
    positives, negatives = labels.sum(), (1 - labels).sum()
    expected = (
        np.cov([above for _, above, _ in found]) / positives
        + np.cov([below for _, _, below in found]) / negatives
    )
    np.testing.assert_allclose(covariance, expected, atol=1e-12)


def test_rows_that_occur_twice_in_a_patient_leave_the_variance_as_it_was():
    labels, scores = draw_scores(3)
    _, once = measure_areas(labels, scores, np.arange(40))
    patients = np.tile(np.arange(40), 2)
    _, twice = measure_areas(np.tile(labels, 2), np.tile(scores, 2), patients)
    np.testing.assert_allclose(twice, once, atol=1e-12)
    _, wrong = measure_areas(np.tile(labels, 2), np.tile(scores, 2), np.arange(80))
    assert wrong[0, 0] < 0.6 * once[0, 0]  # as if there were twice as many patients


def test_the_variance_of_clustered_rows_is_that_of_a_bootstrap_over_patients():
    random = np.random.default_rng(0)
    patients = np.repeat(np.arange(120), 10)
    shift = np.repeat(random.normal(size=120), 10)
    labels = (random.random(1200) < 1 / (1 + np.exp(-2 * shift))).astype(int)
    scores = (shift + labels + random.normal(size=1200))[None]
    _, covariance = measure_areas(labels, scores, patients)
    areas = []
    for _ in range(400):
        drawn = random.integers(0, 120, 120)
        rows = (drawn[:, None] * 10 + np.arange(10)).ravel()
        areas.append(roc_auc_score(labels[rows], scores[0, rows]))
    assert np.sqrt(covariance[0, 0]) == pytest.approx(np.std(areas), rel=0.15)


def test_the_paired_test_agrees_with_a_permutation_test():
    for seed, strength in ((0, 0.0), (1, 0.4), (2, 0.8)):
        random = np.random.default_rng(seed)
        labels = np.repeat([0, 1], 60)
        first = random.normal(size=120) + labels
        second = 0.6 * first + random.normal(size=120) + strength * labels
        scores = np.stack([first, second])
        scores = scores.argsort(axis=1).argsort(axis=1) / 120  # on one scale, to be exchangeable
        areas, covariance = measure_areas(labels, scores, np.arange(120))
        difference, low, high, p = compare_areas(areas, covariance)
        permuted = []
        for _ in range(1500):
            swap = random.random(120) < 0.5
            mixed = np.where(swap, scores[::-1], scores)
            a, b = (roc_auc_score(labels, score) for score in mixed)
            permuted.append(abs(b - a))
        share = (1 + np.sum(np.array(permuted) >= abs(difference) - 1e-12)) / 1501
        assert p == pytest.approx(share, abs=0.05)
        assert (low > 0 or high < 0) == (p < 0.05)


def test_a_difference_is_that_of_the_areas_with_the_normal_interval():
    areas, covariance = np.array([0.7, 0.8]), np.array([[0.002, 0.001], [0.001, 0.0015]])
    difference, low, high, p = compare_areas(areas, covariance)
    error = np.sqrt(0.0015)
    expected = [0.1, 0.1 - 1.959964 * error, 0.1 + 1.959964 * error, 2 * norm.sf(0.1 / error)]
    np.testing.assert_allclose([difference, low, high, p], expected, rtol=1e-6)


def test_equal_predictions_have_no_p():
    labels, scores = draw_scores(0, models=1)
    both = measure_areas(labels, np.repeat(scores, 2, axis=0), np.arange(40))
    difference, *rest = compare_areas(*both)
    assert difference == 0
    assert np.isnan(rest).all()


def test_what_is_not_defined_is_nan():
    scores = np.linspace(0, 1, 6)[None]
    for labels in (np.zeros(6), np.ones(6)):
        areas, covariance = measure_areas(labels, scores, np.arange(6))
        assert np.isnan(areas).all()
        assert np.isnan(covariance).all()
    areas, covariance = measure_areas(np.array([0, 0, 0, 0, 0, 1]), scores, np.arange(6))
    assert areas[0] == 1
    assert np.isnan(covariance).all()  # one positive
    areas, covariance = measure_areas(np.array([0, 0, 0, 1, 1, 1]), scores, np.arange(6))
    assert np.isnan(find_interval(areas[0], covariance[0, 0])).all()  # perfect separation


def test_an_interval_ends_at_one():
    assert find_interval(0.99, 0.01) == (pytest.approx(0.99 - Z95 * 0.1), 1.0)


def test_a_tie_counts_one_half():
    for values, area in (((0.5, 0.5), 0.5), ((0.4, 0.5), 1.0), ((0.5, 0.4), 0.0)):
        assert measure_areas(np.array([0, 1]), np.array([values]), np.arange(2))[0][0] == area
