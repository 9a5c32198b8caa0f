"""The score that a run wrote to its `metrics.json`."""

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
