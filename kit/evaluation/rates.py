"""What a threshold yields: counts of a 2 × 2 table, rates with intervals, and chosen thresholds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kit.evaluation.delong import Z95


class Rate(NamedTuple):
    """A measure with its 95 % interval; NaN where one of them is not defined."""

    value: float
    low: float
    high: float


class Counts(NamedTuple):
    """A 2 × 2 table: true and false positives, true and false negatives."""

    tp: int
    fp: int
    tn: int
    fn: int


_UNKNOWN = Rate(np.nan, np.nan, np.nan)


def count_cells(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> Counts:
    """Count the cells; a row is called positive where its probability reaches the threshold."""
    positive, called = np.asarray(labels, bool), np.asarray(probabilities) >= threshold
    cells = (called & positive, called & ~positive, ~called & ~positive, ~called & positive)
    return Counts(*(int(cell.sum()) for cell in cells))


def measure_share(part: int, whole: int) -> Rate:
    """Measure a share with Wilson's 95 % interval (JASA 1927;22:209); NaN of nothing."""
    from scipy.stats import binomtest  # here, because importing it takes long

    if not whole:
        return _UNKNOWN
    interval = binomtest(part, whole).proportion_ci(method="wilson")
    return Rate(part / whole, float(interval.low), float(interval.high))


def measure_rates(counts: Counts, prevalence: float | None = None) -> dict[str, Rate]:
    """Measure all rates of a 2 × 2 table; with `prevalence` PPV and NPV at that one too.

    These are of sensitivity and specificity, by Bayes; their intervals, of those of the likelihood
    ratios, are NaN where a ratio has none.
    """
    tp, fp, tn, fn = counts
    plus = measure_ratio(tp, tp + fn, fp, fp + tn)
    minus = measure_ratio(fn, tp + fn, tn, fp + tn)
    rates = {
        "sensitivity": measure_share(tp, tp + fn),
        "specificity": measure_share(tn, tn + fp),
        "PPV": measure_share(tp, tp + fp),
        "NPV": measure_share(tn, tn + fn),
        "accuracy": measure_share(tp + tn, sum(counts)),
        "LR+": plus,
        "LR−": minus,
    }
    if prevalence is not None:
        odds, healthy = prevalence / (1 - prevalence), 1 - prevalence
        sensitivity, specificity = rates["sensitivity"].value, rates["specificity"].value
        found, missed = sensitivity * prevalence, (1 - sensitivity) * prevalence
        cleared, alarmed = specificity * healthy, (1 - specificity) * healthy
        rates[f"PPV at prevalence {prevalence:g}"] = Rate(
            _divide(found, found + alarmed),
            *(_to_share(odds * end) for end in plus[1:]),
        )
        rates[f"NPV at prevalence {prevalence:g}"] = Rate(
            _divide(cleared, cleared + missed),
            *(1 - _to_share(odds * end) for end in (minus.high, minus.low)),
        )
    return rates


def measure_ratio(part: int, whole: int, other_part: int, other_whole: int) -> Rate:
    """Measure the ratio of two shares, its interval by logarithms (Simel DL et al., 1991).

    NaN where the lower share is zero; no interval where the upper is.
    """
    if not (whole and other_whole and other_part):
        return _UNKNOWN
    ratio = (part / whole) / (other_part / other_whole)
    if not part:
        return Rate(ratio, np.nan, np.nan)
    error = np.sqrt(1 / part - 1 / whole + 1 / other_part - 1 / other_whole)
    if not error:
        return Rate(ratio, np.nan, np.nan)
    return Rate(ratio, float(ratio * np.exp(-Z95 * error)), float(ratio * np.exp(Z95 * error)))


def choose_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Choose three thresholds from labels (N,) and probabilities (N,); none with one class.

    Youden's index at its highest; the highest threshold that reaches a sensitivity of 0.9; the
    lowest that reaches a specificity of 0.9.
    """
    from sklearn.metrics import roc_curve

    labels = np.asarray(labels)
    if labels.min() == labels.max():
        return {}
    false, true, thresholds = roc_curve(labels, probabilities, drop_intermediate=False)
    false, true, thresholds = false[1:], true[1:], thresholds[1:]  # the first calls nothing
    chosen = {
        "Youden": thresholds[np.argmax(true - false)],
        "sensitivity 0.9": thresholds[np.argmax(true >= 0.9)],
    }
    specific = thresholds[false <= 0.1]
    if len(specific):
        chosen["specificity 0.9"] = specific[-1]
    return {name: float(threshold) for name, threshold in chosen.items()}


def _divide(part: float, whole: float) -> float:
    return part / whole if whole else np.nan


def _to_share(odds: float) -> float:
    return odds / (1 + odds)
