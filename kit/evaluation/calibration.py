"""How well probabilities mean what they say: intercept, slope, ECE, and a temperature."""

from __future__ import annotations

import numpy as np

from kit.ensemble import CLIP
from kit.evaluation.curves import measure_reliability
from kit.evaluation.delong import Z95
from kit.evaluation.rates import Rate

_STEPS = 100  # of Newton's method, which needs fewer than ten where there is an optimum


def to_logits(probabilities: np.ndarray) -> np.ndarray:
    """Turn probabilities, clipped as `ensemble.score` clips them, into logits."""
    probabilities = np.clip(np.asarray(probabilities, np.float64), CLIP, 1 - CLIP)
    return np.log(probabilities) - np.log1p(-probabilities)


def to_probabilities(logits: np.ndarray) -> np.ndarray:
    """Turn logits into probabilities."""
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def fit_logistic(
    design: np.ndarray, labels: np.ndarray, offset: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a logistic regression, without penalty, of `labels` (N,) on `design` (N, K).

    `offset` is added to the linear predictor. Returns coefficients and standard errors, (K,) each;
    NaN where there is no optimum, as with one class or with perfect separation.
    """
    labels, coefficients = np.asarray(labels, np.float64), np.zeros(design.shape[1])
    unknown = np.full(design.shape[1], np.nan)
    if labels.min() == labels.max():
        return unknown, unknown
    loss, step = np.inf, np.zeros_like(coefficients)
    for _ in range(_STEPS):
        linear = design @ coefficients + offset
        new = float(np.sum(np.logaddexp(0, linear) - labels * linear))
        if new > loss + 1e-12 * abs(loss):  # too far: half of the step
            step /= 2
            coefficients = coefficients - step
            continue
        loss, expected = new, to_probabilities(linear)
        information = design.T @ (design * (expected * (1 - expected))[:, None])
        if np.linalg.cond(information) > 1e13 or np.abs(coefficients).max() > 1e4:
            return unknown, unknown
        step = np.linalg.solve(information, design.T @ (labels - expected))
        coefficients = coefficients + step
        if np.abs(step).max() < 1e-10 * (1 + np.abs(coefficients).max()):
            return coefficients, np.sqrt(np.diag(np.linalg.inv(information)))
    return unknown, unknown


def measure_calibration(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Rate]:
    """Measure intercept and slope with Wald's 95 % intervals, and the ECE of ten equal bins.

    The slope is that of a logistic regression on the logit; the intercept ("in the large") that of
    one whose slope is held at 1. Perfect are 0 and 1. The ECE is biased upwards in small sets.
    """
    logits = to_logits(probabilities)
    ones = np.ones_like(logits)
    (intercept,), (error,) = fit_logistic(ones[:, None], labels, logits)
    slope, slope_error = (found[1] for found in fit_logistic(np.stack([ones, logits], 1), labels))
    bins = measure_reliability(np.asarray(labels), np.asarray(probabilities))
    gaps = np.abs(np.subtract(bins["predicted"], bins["observed"]))
    error_of_bins = float(np.average(gaps, weights=bins["slices"]))
    return {
        "calibration intercept": _by_wald(intercept, error),
        "calibration slope": _by_wald(slope, slope_error),
        "ECE": Rate(error_of_bins, np.nan, np.nan),
    }


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Fit the temperature that minimizes the log loss; None where there is none.

    A logistic regression on the logit alone, without intercept, whose slope is 1 / temperature.
    There is none with one class, with perfect separation, and where a higher probability goes with
    fewer positives.
    """
    (slope,), _ = fit_logistic(to_logits(probabilities)[:, None], labels)
    return float(1 / slope) if slope > 0 else None


def apply_temperature(probabilities: np.ndarray, temperature: float | None) -> np.ndarray:
    """Divide the logits by the temperature; without one the probabilities stay as they are."""
    if temperature is None:
        return np.asarray(probabilities, np.float64)
    return to_probabilities(to_logits(probabilities) / temperature)


def _by_wald(value: float, error: float) -> Rate:
    return Rate(float(value), float(value - Z95 * error), float(value + Z95 * error))
