"""Areas under ROC curves with their covariance: DeLong's, for patients with several rows too.

DeLong ER et al., Biometrics 1988;44:837; by midranks as in Sun X and Xu W, IEEE Signal Processing
Letters 2014;21:1389. Where a patient has several rows (slices, series), their components are summed
by patient: Obuchowski NA, Biometrics 1997;53:567. With one row a patient the two are the same.
"""

from __future__ import annotations

import math

import numpy as np

Z95 = 1.959963984540054  # the 97.5 % point of the standard normal distribution


def measure_areas(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Measure the areas of K scores of the same N rows, and their covariance.

    `labels` (N,) are 0 or 1, `scores` (K, N), `patients` (N,). A tie counts one half. Returns (K,)
    and (K, K); NaN where a class is missing, and in the covariance where fewer than two patients
    show a class.
    """
    positive = np.asarray(labels, bool)
    counts = int(positive.sum()), int((~positive).sum())
    areas = np.full(len(scores), np.nan)
    covariance = np.full((len(scores), len(scores)), np.nan)
    if not all(counts):
        return areas, covariance
    groups = np.unique(patients, return_inverse=True)[1]
    parts = [_place_rows(score, positive) for score in np.asarray(scores, np.float64)]
    areas = np.array([above.mean() for above, _ in parts])
    sums = []  # of each class, by patient: what its rows add to each area
    for kind, rows in enumerate((positive, ~positive)):
        deviations = np.stack(
            [part[kind] - area for part, area in zip(parts, areas, strict=True)], 1
        )
        total = np.zeros((groups.max() + 1, len(areas)))
        np.add.at(total, groups[rows], deviations)
        sums.append(total)
    shown = [np.unique(groups[rows]).size for rows in (positive, ~positive)]
    if min(shown) < 2:
        return areas, covariance
    (above, below), (m, n), everyone = sums, counts, np.unique(groups).size
    both = above.T @ below
    covariance = (
        above.T @ above * shown[0] / (shown[0] - 1) / m**2
        + below.T @ below * shown[1] / (shown[1] - 1) / n**2
        + (both + both.T) * everyone / (everyone - 1) / (m * n)
    )
    return areas, covariance


def find_interval(area: float, variance: float) -> tuple[float, float]:
    """Return the 95 % interval of an area, within 0 to 1; NaN where it is not defined.

    With perfect separation the variance is zero, and says nothing about the population.
    """
    if not variance > 0:
        return np.nan, np.nan
    half = Z95 * np.sqrt(variance)
    return max(0.0, area - half), min(1.0, area + half)


def compare_areas(areas: np.ndarray, covariance: np.ndarray) -> tuple[float, float, float, float]:
    """Compare two areas: the second minus the first, its 95 % interval, and the two-sided p.

    Interval and p are NaN where the difference has no variance, as of equal predictions.
    """
    difference = float(areas[1] - areas[0])
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if not variance > 1e-15:
        return difference, np.nan, np.nan, np.nan
    error = float(np.sqrt(variance))
    half, p = Z95 * error, math.erfc(abs(difference) / error / math.sqrt(2))
    return difference, difference - half, difference + half, p


def _place_rows(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each positive row's share of negatives below it, each negative's of positives above.

    Their means are the area.
    """
    from scipy.stats import rankdata  # here, because importing it takes long

    ranks = rankdata(scores)
    m, n = positive.sum(), (~positive).sum()
    above = (ranks[positive] - rankdata(scores[positive])) / n
    below = 1 - (ranks[~positive] - rankdata(scores[~positive])) / m
    return above, below
