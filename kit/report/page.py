"""One self-contained HTML page: data, style and script in one file, nothing from a network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from kit import progress
from kit.classifier import ClassifierConfig
from kit.competition import LABELS
from kit.dicom.pixels import DicomError
from kit.ensemble import name_columns
from kit.files import replace_file
from kit.images import read_image

IMAGE_BYTES = 18_000_000  # of all images and maps of a page, which keeps it under 20 MB
IMAGE_SIDES = 144, 288  # of a window in pixels, the least and the most
IMAGE_QUALITY = 35  # of WebP
# A slice's bytes by the side of its windows. A patient's head takes 57, to which the maps come.
_BYTES_A_SIDE = 70

_SCRIPTS = ("plot.js", "viewer.js", "report.js")


def write_page(path: Path, data: dict) -> Path:
    """Render `data` and write it beside its place, then move it there."""
    page = render_page(data)
    with replace_file(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def render_page(data: dict) -> str:
    """The page of `data` as HTML.

    No value of `data` can become markup: it is JSON without `<`, and the script writes it as text.
    The page's policy lets the browser run this script alone and ask no network for anything.
    """
    style = _read_asset("report.css")
    script = "\n".join(map(_read_asset, _SCRIPTS))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    page = _read_asset("report.html")
    # The data go in last, so that nothing in them is taken for a place to fill.
    for name, value in (
        ("digest", digest),
        ("style", style),
        ("script", script),
        ("data", text.replace("<", "\\u003c")),
    ):
        page = page.replace(f"[[{name}]]", value, 1)
    return page


def describe_series(part: pd.DataFrame, models: tuple[str, ...]) -> dict:
    """One series as the page takes it; `part` holds its slices, in order.

    `truth` is (6, T) of 0 and 1, or None where the labels are not known; `probabilities` map each
    model to (6, T); `x` (T,) is the position, mm above the lowest slice where it is known.
    """
    positions = part["position"].to_numpy(np.float64)
    missing = "ImagePositionPatient" in part and part["ImagePositionPatient"].isna().any()
    labelled = set(LABELS) <= set(part.columns) and (part["any"] >= 0).all()
    return {
        "name": str(part["series"].iloc[0]),
        "patient": str(part["PatientID"].iloc[0]),
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
    """As the page takes them: one rounding for all its parts, finer than what it shows."""
    return values.round(6)


def draw_series(
    parts: list[pd.DataFrame],
    config: ClassifierConfig,
    locate: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[dict]:
    """For each series its `images`, and where `locate` is given their `maps`.

    An image is a data URI of the three windows side by side, as the classifier sees the slice; or
    a plain reason why there is none. Once the page's images weigh `IMAGE_BYTES` no more are drawn.
    `locate` takes uint8 images (B, S, S, 3) and gives uint8 maps (B, 6, h, w).
    """
    drawn, weight = [], 0
    side = choose_side(sum(map(len, parts)))
    with progress.open_bar("Drawing slices", sum(map(len, parts)), "slices") as bar:
        for part in parts:
            images, texts = {}, []
            for row, path in enumerate(part["path"]):
                if weight >= IMAGE_BYTES:
                    texts.append("no image: the page would grow beyond 20 MB")
                    continue
                try:
                    images[row] = read_image(path, config.image_size, config.crop, config.repair)
                    texts.append(encode_image(images[row], side))
                except DicomError as error:
                    texts.append(f"no image: {error.reason}")
                weight += len(texts[-1])
            maps = _map_series(locate, images, len(part)) if locate and images else None
            weight += len(maps["bytes"]) if maps else 0
            drawn.append({"images": texts, "maps": maps})
            bar.update(len(part))
    return drawn


def choose_side(slices: int) -> int:
    """The side of a window in pixels that so many slices leave room for."""
    return int(np.clip(IMAGE_BYTES / _BYTES_A_SIDE / max(1, slices), *IMAGE_SIDES))


def encode_image(image: np.ndarray, side: int) -> str:
    """uint8 (S, S, 3) → the three channels side by side, gray, as a WebP data URI.

    A channel is `side` pixels wide and high, or as many as the image has.
    """
    side = min(side, len(image))
    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    windows = np.hstack([image[..., channel] for channel in range(3)])
    _, encoded = cv2.imencode(".webp", windows, [cv2.IMWRITE_WEBP_QUALITY, IMAGE_QUALITY])
    return "data:image/webp;base64," + base64.b64encode(encoded).decode()


def _map_series(
    locate: Callable[[np.ndarray], np.ndarray], images: dict[int, np.ndarray], slices: int
) -> dict:
    """The maps of a series: bytes (T, 6, h, w) in base64, zeros where there is no image."""
    rows = list(images)
    batches = [rows[start : start + 16] for start in range(0, len(rows), 16)]
    found = np.concatenate([locate(np.stack([images[row] for row in some])) for some in batches])
    full = np.zeros((slices, *found.shape[1:]), dtype=np.uint8)
    full[rows] = found
    return {"shape": list(found.shape[2:]), "bytes": base64.b64encode(full.tobytes()).decode()}


def _read_asset(name: str) -> str:
    return resources.files("kit.report").joinpath("assets", name).read_text(encoding="utf-8")
