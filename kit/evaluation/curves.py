"""ROC, precision-recall and reliability curves of one label."""

from __future__ import annotations

import numpy as np

BINS = 10  # of a reliability diagram, equally wide


def trace_curves(labels: np.ndarray, probabilities: np.ndarray) -> dict | None:
    """ROC, precision-recall and reliability of one label, (N,) each; None without both classes.

    `roc` is (false positive rate, true positive rate), `precision_recall` (recall, precision),
    each thinned to at most 200 points; `auc` and `average_precision` are of the full curves.
    """
    from sklearn.metrics import (
        average_precision_score,
        precision_recall_curve,
        roc_auc_score,
        roc_curve,
    )

    if labels.min() == labels.max():
        return None
    false, true, _ = roc_curve(labels, probabilities)
    precision, recall, _ = precision_recall_curve(labels, probabilities)
    return {
        "roc": _thin(false, true),
        "auc": roc_auc_score(labels, probabilities),
        "precision_recall": _thin(recall, precision),
        "average_precision": average_precision_score(labels, probabilities),
        "reliability": measure_reliability(labels, probabilities),
    }


def measure_reliability(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, list]:
    """Mean prediction, share of positives and number of slices in equally wide bins.

    Empty bins are left out.
    """
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    filled = count > 0
    predicted = np.bincount(bins, probabilities, BINS)[filled] / count[filled]
    observed = np.bincount(bins, labels, BINS)[filled] / count[filled]
    return {
        "predicted": predicted.tolist(),
        "observed": observed.tolist(),
        "slices": count[filled].tolist(),
    }


def _thin(x: np.ndarray, y: np.ndarray, points: int = 200) -> list[list[float]]:
    """At most `points` points of a curve, evenly along its length, both ends among them."""
    if len(x) <= points:
        return [x.tolist(), y.tolist()]
    along = np.concatenate([[0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    chosen = np.unique(np.searchsorted(along, np.linspace(0, along[-1], points)))
    chosen = np.unique([0, *chosen[chosen < len(x)], len(x) - 1])
    return [x[chosen].tolist(), y[chosen].tolist()]
