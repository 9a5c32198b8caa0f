import numpy as np
import pytest
from sklearn.metrics import auc, roc_auc_score

from kit.evaluation.curves import measure_reliability, trace_curves


def test_curves_of_four_slices_are_those_computed_by_hand():
    curves = trace_curves(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    assert curves["auc"] == 0.75
    # Precision 1 at recall 1/2, 2/3 at recall 1.
    assert curves["average_precision"] == pytest.approx(1 / 2 + (2 / 3) / 2)
    assert trace_curves(np.zeros(3), np.array([0.1, 0.2, 0.3])) is None


def test_a_thinned_curve_keeps_its_area_and_its_ends():
    random = np.random.default_rng(3)
    labels = random.integers(0, 2, 20000)
    probabilities = 1 / (1 + np.exp(-random.normal(labels, 1)))
    curves = trace_curves(labels, probabilities)
    x, y = map(np.array, curves["roc"])
    assert len(x) <= 202
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert auc(x, y) == pytest.approx(roc_auc_score(labels, probabilities), abs=0.002)


def test_reliability_counts_the_slices_of_each_filled_bin():
    found = measure_reliability(np.array([0, 1, 1, 1]), np.array([0.01, 0.05, 0.95, 1.0]))
    assert found["slices"] == [2, 2]
    np.testing.assert_allclose(found["predicted"], [0.03, 0.975])
    assert found["observed"] == [0.5, 1.0]


def test_reliability_is_that_of_the_bins_counted_by_numpy():
    random = np.random.default_rng(5)
    probabilities = random.beta(0.3, 1.5, 5000)
    labels = (random.random(5000) < probabilities).astype(int)
    counts, edges = np.histogram(probabilities, 10, (0, 1))
    sums, positives = (
        np.histogram(probabilities, edges, weights=weights)[0]
        for weights in (probabilities, labels)
    )
    found = measure_reliability(labels, probabilities)
    assert found["slices"] == counts.tolist()
    np.testing.assert_allclose(found["predicted"], sums / counts)
    np.testing.assert_allclose(found["observed"], positives / counts)
