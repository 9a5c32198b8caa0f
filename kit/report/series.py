"""A series on a page: its probabilities, its images, its maps; and which series a page shows."""

from __future__ import annotations

import base64
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from kit import progress
from kit.classifier import ClassifierConfig
from kit.competition import LABELS
from kit.dicom.parsing import DicomError, parse_numbers
from kit.ensemble import MODELS, name_columns
from kit.evaluation.intervals import slice_losses
from kit.files import Reason
from kit.images import SliceDataset, Source, join_neighbours, read_source, stack_slices
from kit.report.pixels import (
    POINTS,
    QUALITIES,
    draw_slice,
    encode_levels,
    find_letters,
    frame_slice,
    place_view,
    weigh_slices,
)
from kit.report.ranking import rank_series
from kit.windowing.render import find_view

_SERIES_SHOWN = 50
IMAGE_CHARACTERS = 36_000_000  # of all images on a page: above, a browser opens it slowly
_UNKNOWN = "image holds values that are not finite"

# Images (B, S, S, channels) → uint8 maps (B, 6, h, w).
_Locate = Callable[[torch.Tensor], np.ndarray]


def choose_series(
    table: pd.DataFrame, held_out: bool, config: ClassifierConfig
) -> tuple[list[str], pd.DataFrame]:
    """`rank_series` by the bag's loss or, without truth, by its highest probability.

    As many as a page takes, at most `_SERIES_SHOWN`, and never none.
    """
    weight = weigh_slices(table["path"].to_numpy(), QUALITIES[0], config.repair)
    slices = table.groupby("series").size().mean()
    shown = int(np.clip(IMAGE_CHARACTERS / max(1.0, weight * slices), 1, _SERIES_SHOWN))
    if held_out:
        values = slice_losses(table[list(LABELS)], table[name_columns("bag")])
        return rank_series(table, values, shown)
    values = table[[*name_columns("bag"), "bag_any"]].to_numpy()
    return rank_series(table, values, shown, "max")


def describe_viewer(config: ClassifierConfig) -> dict:
    """What the page's viewer needs beside the series: the model's windows, the levels' meaning."""
    return {"windows": config.windows, "points": POINTS}


def present_series(
    table: pd.DataFrame,
    chosen: list[str],
    config: ClassifierConfig,
    locate: _Locate | None = None,
    quality: int = QUALITIES[0],
    drawn: set[str] | None = None,
) -> tuple[list[dict], list[str]]:
    """The series named in `chosen` as the page takes them, in that order, and their images.

    The images of a series are a text with a line for each slice, empty where there is none: of a
    slice with a `code`, and of all in a series that is not in `drawn`, if that is given. With
    `locate`, a series that is drawn has `maps` too.
    """
    groups = table.groupby("series", sort=False)
    parts = [groups.get_group(name) for name in chosen]
    described, images = [], []
    with progress.open_bar("Drawing slices", sum(map(len, parts)), "slices") as bar:
        for name, part in zip(chosen, parts, strict=True):
            found: dict = {"reasons": _list_reasons(part)}
            texts: list[str] = []
            if drawn is None or name in drawn:
                found, texts = _draw_series(part, config, quality)
                views = found.pop("views")
                found["maps"] = _map_series(locate, part, config, views) if locate else None
            described.append({**describe_series(part), **found})
            images.append("\n".join(texts))
            bar.update(len(part))
    return described, images


def describe_series(part: pd.DataFrame) -> dict:
    """One series as the page takes it; `part` holds its slices, in order.

    `truth` is (6, T) of 0 and 1, or None where the labels are unknown; `probabilities` maps each
    model that predicted the series to (6, T); `x` (T,) is the position in mm above the lowest
    slice, or the instance number where positions are missing; `letters` (T,) has the four edges'.
    """
    positions = part["position"].to_numpy(np.float64)
    missing = "ImagePositionPatient" in part and part["ImagePositionPatient"].isna().any()
    labelled = set(LABELS) <= set(part.columns) and (part["any"] >= 0).all()
    models = [m for m in MODELS if f"{m}_any" in part and part[f"{m}_any"].notna().any()]
    first = part.iloc[0]
    letters = [find_letters(vector) for vector in _read_vectors(part, "ImageOrientationPatient", 6)]
    return {
        "name": str(first["series"]),
        "uid": str(first["SeriesInstanceUID"]),
        "study_uid": str(first["StudyInstanceUID"]),
        "patient": str(first["PatientID"]),
        "slices": part["SOPInstanceUID"].astype(str).tolist(),
        "instances": [text and str(text) for text in _list_texts(part, "InstanceNumber")],
        "letters": [",".join(each) for each in letters],
        "fold": int(first["fold"]) if "fold" in part else None,
        "x": np.round(positions - positions[0], 2).tolist(),
        "axis": "instance number" if missing else "mm above the lowest slice",
        "truth": part[list(LABELS)].to_numpy().T.astype(int).tolist() if labelled else None,
        "probabilities": {
            model: [_list_values(part[name]) for name in name_columns(model)] for model in models
        },
    }


def _list_values(column: pd.Series) -> list[float | None]:
    """Probabilities for the page, None where there is none."""
    return round_probabilities(column).astype(object).where(column.notna(), None).tolist()


def round_probabilities(values: pd.Series) -> pd.Series:
    """Round for the page: equally in all of its parts, and finer than it displays."""
    return values.round(6)


def _list_texts(part: pd.DataFrame, column: str) -> list:
    """The values of a column that may be missing, None where a value is."""
    if column not in part:
        return [None] * len(part)
    return part[column].astype(object).where(part[column].notna(), None).tolist()


def _read_vectors(part: pd.DataFrame, column: str, size: int) -> list[tuple[float, ...] | None]:
    """The numbers in a column of texts, None where they are not `size` numbers."""
    found = [parse_numbers(text) if text else None for text in _list_texts(part, column)]
    return [vector if vector and len(vector) == size else None for vector in found]


def _draw_series(
    part: pd.DataFrame, config: ClassifierConfig, quality: int
) -> tuple[dict, list[str]]:
    """The `reasons` of slices without an image, `mm` a pixel, the `views` for maps; the images."""
    texts, reasons = [], _list_reasons(part)
    sizes: list[float | None] = []
    views: list[list[float]] = []
    spacings = _read_vectors(part, "PixelSpacing", 2)
    sources = part["source" if "source" in part else "path"]
    for number, (source, spacing) in enumerate(zip(sources, spacings, strict=True)):
        known = reasons.get(number)
        found = Reason(known) if known else _read_slice(source, config.repair)
        if isinstance(found, Reason):
            reasons[number] = found.code
            texts.append("")
            sizes.append(None)
            views.append([0, 0, 1, 1])
            continue
        frame = frame_slice(found.shape, spacing)
        texts.append(encode_levels(draw_slice(found, frame), quality))
        sizes.append(frame.spacing and round(frame.spacing, 4))
        views.append(place_view(find_view(found, config), found.shape, frame))
    return {"reasons": reasons, "mm": sizes, "views": views}, texts


def _list_reasons(part: pd.DataFrame) -> dict[int, str]:
    """Why slices were left out that are among the scored ones, by their places."""
    codes = _list_texts(part, "code")
    return {number: code for number, code in enumerate(codes) if code}


def _read_slice(source: Source, repair: bool) -> np.ndarray | Reason:
    try:
        hounsfield = read_source(source, repair)
    except DicomError as error:
        return Reason(error.code)
    except MemoryError:
        return Reason("there is not enough memory for its pixels")
    finite = hounsfield.dtype == np.int16 or np.isfinite(hounsfield).all()
    return hounsfield if finite else Reason(_UNKNOWN)


def _map_series(
    locate: _Locate, part: pd.DataFrame, config: ClassifierConfig, views: list
) -> dict | None:
    """The maps of a series: bytes (T, 6, h, w) in base64, zeros where a slice gives no image.

    `views` (T, 4) say where on the slice's image they lie. None where no slice gives an image.
    """
    rows = [row for row in range(len(part)) if row not in _list_reasons(part)]
    dataset = SliceDataset(part.iloc[rows], config)
    items = {row: dataset[place] for place, row in enumerate(rows)}
    seen = {row: item["slices"] for row, item in items.items() if "slices" in item}
    if not seen:
        return None
    images = list(seen.values())
    batches = (stack_slices(images[start : start + 16]) for start in range(0, len(images), 16))
    found = np.concatenate([locate(join_neighbours(batch)) for batch in batches])
    full = np.zeros((len(part), *found.shape[1:]), dtype=np.uint8)
    full[list(seen)] = found
    text = base64.b64encode(full.tobytes()).decode()
    return {"shape": list(found.shape[2:]), "bytes": text, "views": views}
