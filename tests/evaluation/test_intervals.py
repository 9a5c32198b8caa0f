import numpy as np
import pytest
from sklearn.metrics import log_loss

from kit.evaluation.intervals import bootstrap_intervals, slice_losses


def test_slice_losses_average_to_scikit_learns_log_loss():
    random = np.random.default_rng(0)
    labels, probabilities = random.integers(0, 2, (50, 6)), random.random((50, 6))
    means = slice_losses(labels, probabilities).mean(axis=0)
    expected = [log_loss(labels[:, k], probabilities[:, k]) for k in range(6)]
    np.testing.assert_allclose(means[:6], expected, rtol=1e-9)
    assert means[6] == pytest.approx((sum(expected) + expected[5]) / 7)


def test_two_patients_drawn_anew_give_either_both_or_one_of_them():
    # Means 0, 1/4 and 1 with probabilities 1/4, 1/2 and 1/4: three slices against one.
    losses = np.array([[0.0], [0.0], [0.0], [1.0]])
    intervals = bootstrap_intervals(losses, np.array(["a", "a", "a", "b"]))
    assert intervals.tolist() == [[0.0, 1.0]]


def test_the_interval_of_many_patients_is_the_normal_one():
    losses = np.random.default_rng(1).normal(3, 2, (900, 1))
    ((low, high),) = bootstrap_intervals(losses, np.arange(900))
    assert high - low == pytest.approx(2 * 1.96 * losses.std() / 30, rel=0.1)
    assert (low + high) / 2 == pytest.approx(losses.mean(), abs=0.02)


def test_slices_of_one_patient_are_drawn_together():
    losses = np.repeat(np.random.default_rng(2).normal(0, 1, 40), 30)[:, None]
    apart = np.diff(bootstrap_intervals(losses, np.arange(1200)))[0, 0]
    together = np.diff(bootstrap_intervals(losses, np.repeat(np.arange(40), 30)))[0, 0]
    assert together == pytest.approx(apart * np.sqrt(30), rel=0.15)
