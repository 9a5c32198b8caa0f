import numpy as np
import pytest
import statsmodels.api as sm
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from kit.evaluation.calibration import (
    apply_temperature,
    fit_logistic,
    fit_temperature,
    measure_calibration,
    to_logits,
    to_probabilities,
)


def draw(rows=500, temperature=2.0, shift=0.3, seed=0):
    """Labels, and probabilities whose logits are `temperature` times too large, and shifted."""
    random = np.random.default_rng(seed)
    true = random.normal(size=rows) * 1.5 - 1
    labels = (random.random(rows) < to_probabilities(true)).astype(int)
    return labels, to_probabilities(temperature * (true + shift))


def test_intercept_and_slope_are_those_of_statsmodels():
    labels, probabilities = draw()
    logits = to_logits(probabilities)
    found = measure_calibration(labels, probabilities)
    slope = sm.GLM(labels, sm.add_constant(logits), family=sm.families.Binomial()).fit()
    ones = np.ones((len(labels), 1))
    intercept = sm.GLM(labels, ones, offset=logits, family=sm.families.Binomial()).fit()
    for name, fit, place in (
        ("calibration slope", slope, 1),
        ("calibration intercept", intercept, 0),
    ):
        assert found[name].value == pytest.approx(fit.params[place], rel=1e-6)
        np.testing.assert_allclose(found[name][1:], fit.conf_int()[place], rtol=1e-5)


def test_the_slope_is_scikit_learns():
    labels, probabilities = draw(seed=1)
    model = LogisticRegression(C=1e12, tol=1e-10, max_iter=10_000)
    model.fit(to_logits(probabilities)[:, None], labels)
    found = measure_calibration(labels, probabilities)["calibration slope"].value
    assert found == pytest.approx(model.coef_[0, 0], rel=1e-4)


def test_the_error_of_bins_by_hand():
    # Bins (0, .1] and (.9, 1]: means .05 and .95, shares of positives 1/2 and 1/2.
    found = measure_calibration(np.array([0, 1, 1, 0]), np.array([0.04, 0.06, 0.94, 0.96]))
    assert found["ECE"].value == pytest.approx(0.45)


def test_a_temperature_minimizes_the_log_loss():
    labels, probabilities = draw()
    found = fit_temperature(labels, probabilities)
    best = minimize_scalar(
        lambda t: log_loss(labels, apply_temperature(probabilities, t)),
        bounds=(0.1, 10),
        method="bounded",
        options={"xatol": 1e-8},
    )
    assert found == pytest.approx(best.x, rel=1e-4)
    assert found > 1.3  # the logits were too large


def test_a_temperature_of_one_and_none_change_nothing():
    probabilities = np.array([0.001, 0.4, 0.97])
    np.testing.assert_allclose(apply_temperature(probabilities, 1.0), probabilities)
    assert apply_temperature(probabilities, None).tolist() == probabilities.tolist()
    assert apply_temperature(np.array([0.8]), 2.0)[0] == pytest.approx(2 / 3)  # odds 4 → 2


def test_probabilities_of_zero_and_one_have_finite_logits():
    assert np.isfinite(to_logits(np.array([0.0, 1.0]))).all()


@pytest.mark.parametrize(
    ("labels", "probabilities"),
    [
        ([1, 1, 1], [0.2, 0.5, 0.7]),  # one class
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]),  # perfect separation
        ([1, 1, 0, 0], [0.1, 0.3, 0.8, 0.6]),  # the wrong way round
    ],
)
def test_there_is_no_temperature_where_there_is_no_optimum(labels, probabilities):
    assert fit_temperature(np.array(labels), np.array(probabilities)) is None


def test_separated_cases_have_no_slope():
    labels, probabilities = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    found = measure_calibration(labels, probabilities)
    assert np.isnan(found["calibration slope"]).all()
    assert np.isfinite(found["calibration intercept"].value)
    one = measure_calibration(np.ones(4), probabilities)
    assert np.isnan(one["calibration intercept"]).all()


def test_a_regression_far_from_its_start_still_converges():
    random = np.random.default_rng(0)
    x = random.normal(size=2000) * 30
    labels = (random.random(2000) < to_probabilities(0.2 * x - 4)).astype(int)
    design = np.stack([np.ones(2000), x], axis=1)
    found, errors = fit_logistic(design, labels)
    fit = sm.GLM(labels, design, family=sm.families.Binomial()).fit()
    np.testing.assert_allclose(found, fit.params, rtol=1e-6)
    np.testing.assert_allclose(errors, fit.bse, rtol=1e-5)
