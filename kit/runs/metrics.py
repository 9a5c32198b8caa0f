"""The scores that a run wrote to its `metrics.json`."""

from __future__ import annotations

import json
from pathlib import Path

from kit import InputError
from kit.files import read_json


def read_metrics(path: Path) -> dict:
    """Read a `metrics.json`. Raises `OSError`, or `InputError` where a run did not write it."""
    try:
        metrics = read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError):
        metrics = None
    if not isinstance(metrics, dict) or not isinstance(metrics.get("scores"), dict):
        raise InputError(f"{path}: this is not what a run writes about its scores.")
    return metrics


def read_out_of_fold(path: Path) -> float | None:
    """The run's out-of-fold score: the weighted log loss of the bag over all folds.

    None where there is no such file, or where the run held nothing out. Raises as `read_metrics`.
    """
    if not path.exists():
        return None
    scores = read_metrics(path)["scores"]
    try:
        return float(scores["bag"]["all"]["weighted"]) if scores else None
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: this is not what a run writes about its scores.") from None
