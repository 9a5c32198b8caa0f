"""The page of predictions for a folder of scans: no truth, with Grad-CAM overlays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from kit.classifier import ClassifierConfig, load_classifier
from kit.report.gradcam import find_map_layer, locate_labels
from kit.report.page import describe_model, write_page
from kit.report.pixels import QUALITIES, weigh_slices
from kit.report.series import IMAGE_CHARACTERS, describe_viewer, present_series
from kit.report.studies import list_slices, list_studies
from kit.runs.prediction import Predictions
from kit.runs.scans import count_reasons, describe_machine, list_versions
from kit.training.distributed import choose_device


def write_scan_report(
    predictions: Predictions, path: Path, weights: Path, threshold: float = 0.5
) -> Path:
    """Write the page of a folder's predictions and return its path.

    `weights` are those of the classifier whose Grad-CAM is drawn; its configuration also says which
    windows are shown as the model's. Where the images do not fit on one page, it lists the studies,
    and each has a page of its own in the folder `*.studies` beside it.
    """
    classifier = load_classifier(weights).to(choose_device())
    layer = find_map_layer(classifier)
    locate = None if layer is None else partial(locate_labels, classifier, layer)
    slices = list_slices(predictions)
    studies = list_studies(predictions, slices)
    unmapped = classifier.config.architecture if layer is None else None
    common = {**_describe_scans(predictions, threshold), "unmapped": unmapped}
    draw = partial(_write_studies, common, slices, classifier.config, locate)
    plan = plan_images(slices, studies, classifier.config)
    if plan is not None:
        return draw(path, studies, *plan)
    folder = path.with_name(f"{path.stem}.studies")
    folder.mkdir(exist_ok=True)
    for number, study in enumerate(studies, 1):
        page = folder / f"{number}.html"
        part = slices[slices["series"].isin(study["scored"])]
        own = plan_images(part, [study], classifier.config)
        draw(page, [study], *(own or (QUALITIES[-1], {study["chosen"]})))
        study["page"] = f"{folder.name}/{page.name}"
    for page in folder.glob("*.html"):
        if page.stem.isdigit() and int(page.stem) > len(studies):  # of an earlier, larger folder
            page.unlink()
    listed = [_place_study(study, {}) for study in studies]
    return write_page(path, {**common, "studies": listed, "series": []})


def plan_images(
    slices: pd.DataFrame, studies: list[dict], config: ClassifierConfig
) -> tuple[int, set[str]] | None:
    """The quality of the images and the series that have them on one page.

    All series at the best quality that fits, otherwise the chosen series; None where these do not
    fit either.
    """
    chosen = {study["chosen"] for study in studies} - {None}
    for names in ({name for study in studies for name in study["scored"]}, chosen):
        paths = slices.loc[slices["series"].isin(names), "path"].to_numpy()
        for quality in QUALITIES:
            if weigh_slices(paths, quality, config.repair) * len(paths) <= IMAGE_CHARACTERS:
                return quality, names
    return None


def _describe_scans(predictions: Predictions, threshold: float) -> dict:
    table = predictions.table
    return {
        "title": "Head CT: predictions of hemorrhage",
        **describe_model(predictions.model.run),
        "facts": [
            ["slices scored", f"{len(table)} in {table['series'].nunique()} series"],
            ["files left out", str(len(predictions.skipped))],
            ["seconds", f"{predictions.seconds:.0f}"],
            *list_versions().items(),
            *describe_machine().items(),
        ],
        "skipped": count_reasons(predictions.skipped),
        "threshold": threshold,
        "pooled": predictions.series is not None,
    }


def _write_studies(
    common: dict[str, Any],
    slices: pd.DataFrame,
    config: ClassifierConfig,
    locate: Callable | None,
    path: Path,
    studies: list[dict],
    quality: int,
    drawn: set[str],
) -> Path:
    """Write a page of these studies, with images of the series in `drawn`."""
    cards = {name: card for study in studies for name, card in study["scored"].items()}
    places = {name: number for number, name in enumerate(cards)}
    owners = {name: n for n, study in enumerate(studies) for name in study["scored"]}
    series, images = present_series(slices, list(cards), config, locate, quality, drawn)
    for number, (one, (name, card)) in enumerate(zip(series, cards.items(), strict=True)):
        one.update(card, study=owners[name], index=number)
    data = {
        **common,
        **describe_viewer(config),
        "studies": [_place_study(study, places) for study in studies],
        "series": series,
    }
    return write_page(path, data, images)


def _place_study(study: dict, places: dict[str, int]) -> dict:
    """A study with the numbers of its series on the page instead of their names."""
    names = list(study["scored"])
    numbers = [places[name] for name in names if name in places]
    uids = [name.split("/")[-1] for name in names]
    rest = {key: value for key, value in study.items() if key != "scored"}
    chosen = places.get(study["chosen"])
    return {**rest, "chosen": chosen, "series": numbers, "names": uids}
