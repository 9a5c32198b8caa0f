"""A series on a page: its probabilities, its images, its maps; and which series a page shows."""

from __future__ import annotations

import base64
from collections.abc import Callable

import cv2
import numpy as np
import pandas as pd
import torch

from kit import progress
from kit.classifier import ClassifierConfig
from kit.competition import LABELS
from kit.ensemble import MODELS, name_columns
from kit.evaluation.intervals import slice_losses
from kit.images import SliceDataset, join_neighbours, stack_slices
from kit.report.ranking import rank_series
from kit.windowing.config import WINDOWS
from kit.windowing.render import quantize_image

_SERIES_SHOWN = 50
IMAGE_BYTES = 18_000_000  # of all images and maps on a page, to keep the page under 20 MB
_IMAGE_SIDES = 144, 288  # the smallest and the largest side of a window, in pixels
_IMAGE_QUALITY = 35  # of WebP
# Bytes of a slice per pixel of its windows' side. A patient's head takes 57; maps add the rest.
_BYTES_PER_SIDE = 70

# Images (B, S, S, channels) → uint8 maps (B, 6, h, w).
_Locate = Callable[[torch.Tensor], np.ndarray]


def choose_series(table: pd.DataFrame, held_out: bool) -> tuple[list[str], pd.DataFrame]:
    """`rank_series` by the bag's loss or, without truth, by its highest probability."""
    if held_out:
        values = slice_losses(table[list(LABELS)], table[name_columns("bag")])
        return rank_series(table, values, _SERIES_SHOWN)
    values = table[[*name_columns("bag"), "bag_any"]].to_numpy()
    return rank_series(table, values, _SERIES_SHOWN, "max")


def present_series(
    table: pd.DataFrame, chosen: list[str], config: ClassifierConfig, locate: _Locate | None = None
) -> list[dict]:
    """The series named in `chosen` as the page takes them, in that order.

    Each is what `_describe_series` and `draw_series` return together.
    """
    groups = table.groupby("series", sort=False)
    parts = [groups.get_group(name) for name in chosen]
    drawn = draw_series(parts, config, locate)
    return [{**_describe_series(part), **extra} for part, extra in zip(parts, drawn, strict=True)]


def _describe_series(part: pd.DataFrame) -> dict:
    """One series as the page takes it; `part` holds its slices, in order.

    `truth` is (6, T) of 0 and 1, or None where the labels are unknown; `probabilities` maps each
    model that predicted all slices to (6, T); `x` (T,) is the position in mm above the lowest
    slice, or the instance number where positions are missing.
    """
    positions = part["position"].to_numpy(np.float64)
    missing = "ImagePositionPatient" in part and part["ImagePositionPatient"].isna().any()
    labelled = set(LABELS) <= set(part.columns) and (part["any"] >= 0).all()
    models = [m for m in MODELS if f"{m}_any" in part and part[f"{m}_any"].notna().all()]
    return {
        "name": str(part["series"].iloc[0]),
        "patient": str(part["PatientID"].iloc[0]),
        "slices": part["SOPInstanceUID"].astype(str).tolist(),
        "fold": int(part["fold"].iloc[0]) if "fold" in part else None,
        "x": np.round(positions - positions[0], 2).tolist(),
        "axis": "instance number" if missing else "mm above the lowest slice",
        "truth": part[list(LABELS)].to_numpy().T.astype(int).tolist() if labelled else None,
        "probabilities": {
            model: round_probabilities(part[name_columns(model)]).to_numpy().T.tolist()
            for model in models
        },
    }


def round_probabilities(values: pd.DataFrame) -> pd.DataFrame:
    """Round for the page: equally in all of its parts, and finer than it displays."""
    return values.round(6)


def draw_series(
    parts: list[pd.DataFrame], config: ClassifierConfig, locate: _Locate | None = None
) -> list[dict]:
    """For each series its `images` and, if `locate` is given, its `maps`.

    An image is a data URI of the three windows side by side, as the classifier sees the slice, or
    a sentence that says why there is none. Drawing stops once the images weigh `IMAGE_BYTES`.
    """
    drawn, weight = [], 0
    side = choose_side(sum(map(len, parts)))
    with progress.open_bar("Drawing slices", sum(map(len, parts)), "slices") as bar:
        for part in parts:
            dataset, texts, seen = SliceDataset(part, config), [], {}
            for row in range(len(part)):
                if weight >= IMAGE_BYTES:
                    texts.append("no image: the page would grow beyond 20 MB")
                    continue
                item = dataset[row]
                if "slices" in item:
                    seen[row] = item["slices"]
                    own = item["slices"][config.neighbours.index(0)]
                    texts.append(encode_image(quantize_image(own, config), side))
                else:
                    texts.append(f"no image: {item['code']}")
                weight += len(texts[-1])
            maps = _map_series(locate, seen, len(part)) if locate and seen else None
            weight += len(maps["bytes"]) if maps else 0
            drawn.append({"images": texts, "maps": maps})
            bar.update(len(part))
    return drawn


def choose_side(slices: int) -> int:
    """The side of a window, in pixels, at which this many slices fit on a page."""
    return int(np.clip(IMAGE_BYTES / _BYTES_PER_SIDE / max(1, slices), *_IMAGE_SIDES))


def encode_image(image: np.ndarray, side: int) -> str:
    """uint8 (S, S, windows) → three windows side by side, in gray, as a WebP data URI.

    Each is `side` pixels wide and high, but never larger than the image. Of fewer than three, the
    first ones come again.
    """
    side = min(side, len(image))
    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA).reshape(side, side, -1)
    windows = np.hstack([image[..., number % image.shape[2]] for number in range(3)])
    _, encoded = cv2.imencode(".webp", windows, [cv2.IMWRITE_WEBP_QUALITY, _IMAGE_QUALITY])
    return "data:image/webp;base64," + base64.b64encode(encoded.tobytes()).decode()


def name_windows(config: ClassifierConfig) -> list[str]:
    """Name the three windows of `encode_image` by center and width."""
    names = ["brain 40 / 80", "subdural 80 / 200", "soft tissue 40 / 380"]
    if config.windows != WINDOWS:
        names = [f"window {center} / {width}" for center, width in config.windows]
    return [names[number % len(names)] for number in range(3)]


def _map_series(locate: _Locate, seen: dict[int, list], slices: int) -> dict:
    """The maps of a series: bytes (T, 6, h, w) in base64, zeros for slices that are not in `seen`.

    `seen` has the images of a slice and its neighbours by row, as `SliceDataset` gives them.
    """
    images = list(seen.values())
    batches = (stack_slices(images[start : start + 16]) for start in range(0, len(images), 16))
    found = np.concatenate([locate(join_neighbours(batch)) for batch in batches])
    full = np.zeros((slices, *found.shape[1:]), dtype=np.uint8)
    full[list(seen)] = found
    return {"shape": list(found.shape[2:]), "bytes": base64.b64encode(full.tobytes()).decode()}
