"""The bootstrap over patients: measures of many resamples at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kit.ensemble import CLIP
from kit.evaluation.rates import Rate

_CELLS = 4_000_000  # of one array, resamples × rows


def draw_patients(patients: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw whole patients with replacement: how often each row counts, (R, N) a piece.

    `patients` (N,) are the rows' patients. The pieces have `resamples` rows in all.
    """
    names, codes = np.unique(patients, return_inverse=True)
    for counts in draw_counts(len(names), resamples, seed, max(1, _CELLS // max(1, len(codes)))):
        yield counts[:, codes].astype(np.float64)


def draw_counts(patients: int, resamples: int, seed: int, rows: int) -> Iterator[np.ndarray]:
    """Draw so many patients with replacement: how often each is drawn, (`rows`, P) a piece."""
    random, share = np.random.default_rng(seed), np.full(patients, 1 / patients)
    for start in range(0, resamples, rows):
        yield random.multinomial(patients, share, size=min(rows, resamples - start))


def weigh_measures(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, thresholds: dict[str, float]
) -> dict[str, np.ndarray]:
    """Measure labels (N,) and probabilities (N,) under R weightings of the rows, `weights` (R, N).

    Returns (R,) each: AUC, average precision, Brier score, log loss, and sensitivity and
    specificity at each of `thresholds`; NaN where a weighting leaves no row of a class.
    """
    order = np.argsort(probabilities, kind="stable")
    labels, values = np.asarray(labels, np.float64)[order], np.asarray(probabilities)[order]
    weights = weights[:, order]
    positive, negative = weights * labels, weights * (1 - labels)
    clipped = np.clip(values, CLIP, 1 - CLIP)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weights.sum(axis=1)
        true, false = trace_weighted(positive, negative, values)
        losses = -np.where(labels > 0.5, np.log(clipped), np.log1p(-clipped))
        measures = {
            **_measure_ranking(true, false),
            "Brier score": weights @ (values - labels) ** 2 / total,
            "log loss": weights @ losses / total,
        }
        for name, threshold in thresholds.items():
            called = values >= threshold
            measures[f"sensitivity, {name}"] = positive @ called / true[:, -1]
            measures[f"specificity, {name}"] = negative @ ~called / false[:, -1]
    return measures


def trace_weighted(
    positive: np.ndarray, negative: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sum the weights, (R, N) each, of rows that reach each distinct value, from the highest.

    `values` (N,) ascend. Returns true and false positives, (R, K + 1) each, beginning with zeros.
    """
    starts = np.flatnonzero(np.r_[True, np.diff(values) > 0])
    sums = (np.add.reduceat(part, starts, axis=1)[:, ::-1] for part in (positive, negative))
    zeros = np.zeros((len(positive), 1))
    true, false = (np.concatenate([zeros, np.cumsum(part, axis=1)], axis=1) for part in sums)
    return true, false


def summarize(value: float, resampled: np.ndarray) -> tuple[Rate, str]:
    """Return a measure with its 95 % percentile interval, and a note about unusable resamples.

    The interval is not defined where more than a twentieth of the resamples give no value, nor
    where all give the same one, as with perfect separation or a single patient.
    """
    lost = int(np.isnan(resampled).sum())
    if not len(resampled) or lost > len(resampled) / 20:
        return Rate(value, np.nan, np.nan), "interval not defined: too few patients of one class"
    if np.nanmax(resampled) == np.nanmin(resampled):
        return Rate(value, np.nan, np.nan), "interval not defined: all resamples are equal"
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    note = f"{lost} of {len(resampled)} resamples had one class and were left out" if lost else ""
    return Rate(value, float(low), float(high)), note


def _measure_ranking(true: np.ndarray, false: np.ndarray) -> dict[str, np.ndarray]:
    positives, negatives = true[:, -1], false[:, -1]
    area = (np.diff(false) * (true[:, 1:] + true[:, :-1])).sum(axis=1) / 2
    called = true[:, 1:] + false[:, 1:]
    precision = np.divide(true[:, 1:], called, out=np.zeros_like(called), where=called > 0)
    return {
        "AUC": area / (positives * negatives),
        "average precision": (np.diff(true) * precision).sum(axis=1) / positives,
    }
