"""How good predictions are: curves, calibration, bootstrap intervals, the worst series."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kit.competition import LABEL_WEIGHTS, LABELS
from kit.ensemble import CLIP

RESAMPLES = 1000
BINS = 10  # of a reliability diagram, equally wide


def slice_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Log loss of every slice: (N, 6) each → (N, 7), the last the competition's weighted mean.

    Probabilities are clipped as in `ensemble.score`; the mean over the slices is its score.
    """
    labels = np.asarray(labels, dtype=bool)
    probabilities = np.clip(np.asarray(probabilities, np.float64), CLIP, 1 - CLIP)
    losses = -np.log(np.where(labels, probabilities, 1 - probabilities))
    weighted = losses @ (np.asarray(LABEL_WEIGHTS) / np.sum(LABEL_WEIGHTS))
    return np.column_stack([losses, weighted])


def bootstrap_intervals(
    losses: np.ndarray, patients: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """95 % percentile intervals of the mean loss when whole patients are drawn with replacement.

    `losses` (N, K) are those of slices, `patients` (N,) whose they are. Returns (K, 2).
    """
    codes, names = pd.factorize(np.asarray(patients))
    sums = np.zeros((len(names), losses.shape[1]))
    np.add.at(sums, codes, losses)
    totals = np.column_stack([sums, np.bincount(codes)])  # (P, K + 1)
    random, share = np.random.default_rng(seed), np.full(len(names), 1 / len(names))
    means = []
    for start in range(0, resamples, 100):  # in pieces: (100, P) counts fit into memory
        counts = random.multinomial(len(names), share, size=min(100, resamples - start))
        drawn = counts @ totals
        means.append(drawn[:, :-1] / drawn[:, -1:])
    return np.percentile(np.concatenate(means), [2.5, 97.5], axis=0).T


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


def rank_series(
    table: pd.DataFrame, values: np.ndarray, shown: int, measure: str = "mean"
) -> tuple[list, pd.DataFrame]:
    """Which series to show: the worst of every label, and a fair sample of the rest.

    `values` (N, 7) are the slices' losses, or where the truth is unknown their probabilities; a
    series is rated by their `measure`, `"mean"` or `"max"`. `shown` series are named. Four fifths
    are taken in turn from seven lists, one a label and the weighted mean, each with the highest
    first: of 50 series at least the five worst of each. The others are spread evenly over the
    ranks that are left. Returns them, and every series' rates (series × 7), both with the highest
    weighted one first.
    """
    columns = [*LABELS, "weighted"]
    frame = pd.DataFrame(values, columns=columns).assign(series=table["series"].to_numpy())
    rates = frame.groupby("series").agg(measure)
    rates = rates.sort_values("weighted", ascending=False, kind="stable")
    if len(rates) <= shown:
        return rates.index.tolist(), rates
    ranked = np.argsort(-rates.to_numpy(), axis=0, kind="stable")  # place in `rates` by rank
    in_turn = pd.unique(ranked.ravel())  # of each rank, all lists
    worst = in_turn[: shown * 4 // 5]
    rest = np.setdiff1d(in_turn, worst)
    spread = np.linspace(0, len(rest) - 1, shown - len(worst))
    places = np.sort([*worst, *rest[np.round(spread).astype(int)]])
    return rates.index[places].tolist(), rates


def _thin(x: np.ndarray, y: np.ndarray, points: int = 200) -> list[list[float]]:
    """At most `points` points of a curve, evenly along its length, both ends among them."""
    if len(x) <= points:
        return [x.tolist(), y.tolist()]
    along = np.concatenate([[0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    chosen = np.unique(np.searchsorted(along, np.linspace(0, along[-1], points)))
    chosen = np.unique([0, *chosen[chosen < len(x)], len(x) - 1])
    return [x[chosen].tolist(), y[chosen].tolist()]
