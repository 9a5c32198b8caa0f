"""Log losses of single slices, and intervals of their means over patients."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kit.competition import LABEL_WEIGHTS
from kit.ensemble import CLIP
from kit.evaluation.resampling import draw_counts

_RESAMPLES = 1000


def slice_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Compute each slice's log loss: (N, 6) each → (N, 7), the last the weighted mean of the six.

    Probabilities are clipped as in `ensemble.score`; the mean over all slices is that score.
    """
    labels = np.asarray(labels, dtype=bool)
    probabilities = np.clip(np.asarray(probabilities, np.float64), CLIP, 1 - CLIP)
    losses = -np.log(np.where(labels, probabilities, 1 - probabilities))
    weighted = losses @ (np.asarray(LABEL_WEIGHTS) / np.sum(LABEL_WEIGHTS))
    return np.column_stack([losses, weighted])


def bootstrap_intervals(
    losses: np.ndarray, patients: np.ndarray, resamples: int = _RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Compute 95 % percentile intervals of the mean loss, drawing whole patients with replacement.

    `losses` (N, K) are those of slices, `patients` (N,) their patients. Returns (K, 2).
    """
    codes, names = pd.factorize(np.asarray(patients))
    sums = np.zeros((len(names), losses.shape[1]))
    np.add.at(sums, codes, losses)
    totals = np.column_stack([sums, np.bincount(codes)])  # (P, K + 1)
    pieces = draw_counts(len(names), resamples, seed, 100)  # (100, P) counts fit into memory
    drawn = np.concatenate([counts @ totals for counts in pieces])
    return np.percentile(drawn[:, :-1] / drawn[:, -1:], [2.5, 97.5], axis=0).T
