"""ROC, precision-recall and reliability curves of one label."""

from __future__ import annotations

import numpy as np

_BINS = 10  # of a reliability diagram, equally wide


def trace_curves(labels: np.ndarray, probabilities: np.ndarray) -> dict | None:
    """Trace ROC, precision-recall and reliability of one label, (N,) each; None with one class.

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
    """Measure mean prediction, share of positives and number of slices in equally wide bins.

    Empty bins are left out.
    """
    from sklearn.calibration import calibration_curve

    observed, predicted = calibration_curve(labels, probabilities, n_bins=_BINS)
    edges = np.linspace(0, 1, _BINS + 1)[1:-1]  # a probability on an edge is in the lower bin
    count = np.bincount(np.searchsorted(edges, probabilities))
    return {
        "predicted": predicted.tolist(),
        "observed": observed.tolist(),
        "slices": count[count > 0].tolist(),
    }


def _thin(x: np.ndarray, y: np.ndarray, points: int = 200) -> list[list[float]]:
    """Keep at most `points` points of a curve, evenly along its length, with both ends."""
    if len(x) <= points:
        return [x.tolist(), y.tolist()]
    along = np.concatenate([[0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    chosen = np.unique(np.searchsorted(along, np.linspace(0, along[-1], points)))
    chosen = np.unique([0, *chosen[chosen < len(x)], len(x) - 1])
    return [x[chosen].tolist(), y[chosen].tolist()]
