"""The page of predictions for a folder of scans: no truth, with Grad-CAM overlays."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from kit.classifier import load_classifier
from kit.competition import LABELS
from kit.ensemble import name_columns
from kit.report.gradcam import find_map_layer, locate_labels
from kit.report.page import describe_model, write_page
from kit.report.series import (
    choose_series,
    name_windows,
    present_series,
    round_probabilities,
)
from kit.runs.prediction import Predictions
from kit.runs.scans import count_reasons, describe_machine, list_versions, summarize_series
from kit.training.distributed import choose_device


def write_scan_report(
    predictions: Predictions, path: Path, weights: Path, threshold: float = 0.5
) -> Path:
    """Write the page of a folder's predictions and return its path.

    `weights` are those of the classifier whose Grad-CAM is drawn; its configuration also says how
    the images are shown.
    """
    classifier = load_classifier(weights).to(choose_device())
    layer = find_map_layer(classifier)
    locate = None if layer is None else partial(locate_labels, classifier, layer)
    table, skipped = predictions.table, predictions.skipped
    summary = summarize_series(table, threshold, predictions.series)
    summary["series"] = table["series"].unique()
    table = table.drop(columns=name_columns("classifier"), errors="ignore")
    table = table.rename(columns=dict(zip(LABELS, name_columns("bag"), strict=True)))
    chosen, rates = choose_series(table, held_out=False)
    data = {
        "title": "Predictions for scans",
        **describe_model(predictions.model.run),
        "facts": [
            ["slices", f"{len(table)} in {table['series'].nunique()} series"],
            ["files skipped", str(len(skipped))],
            *list_versions().items(),
            *describe_machine().items(),
        ],
        "skipped": count_reasons(skipped),
        "threshold": threshold,
        "summary": json.loads(round_probabilities(summary).to_json(orient="records")),
        "unmapped": classifier.config.architecture if layer is None else None,
        "windows": name_windows(classifier.config),
        "series": present_series(table, chosen, classifier.config, locate),
        "named": False,
        "others": rates.index.difference(chosen, sort=False).tolist(),
    }
    return write_page(path, data)
