"""The score that a run wrote to its `metrics.json`, and what it means."""

from __future__ import annotations

from pathlib import Path

from kit import InputError
from kit.files import read_json


def read_out_of_fold(metrics: Path) -> float | None:
    """Read a run's out-of-fold score: the weighted log loss of its bag over all folds.

    None where there is no such file, or where the run held nothing out. Raises `InputError` where
    a run did not write the file.
    """
    if not metrics.exists():
        return None
    try:
        scores = read_json(metrics)["scores"]
        return float(scores["bag"]["all"]["weighted"]) if scores else None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{metrics}: this is not what a run writes about its scores.") from error


def describe_setback(classifier: float | None, bag: float) -> str:
    """Say that the sequence models make their classifier worse, and what to do.

    Both are weighted log losses over the same slices. Empty where they do not, and without the
    classifier's.
    """
    if classifier is None or bag <= classifier:
        return ""
    return (
        f"The sequence models make it worse: the weighted log loss is {bag:.4f} with them and "
        f"{classifier:.4f} by the classifier alone. They usually had too few patients to learn "
        "from, or too few steps: train on more patients, or longer (--lstm-epochs), or mix "
        "both (kit ensemble RUN --mix-classifier). The "
        "submission is still theirs, as the recipe says."
    )
