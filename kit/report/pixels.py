"""A slice on a page: one 8-bit image, of which the browser makes any window, and how it lies."""

from __future__ import annotations

import base64
from typing import NamedTuple

import cv2
import numpy as np

from kit.dicom.parsing import DicomError
from kit.dicom.pixels import AIR, read_hounsfield

# (HU, level): 8 bits bent so that a level is 0.8 HU where blood lies, and 48 HU in bone.
POINTS = ((-1000, 0), (-150, 16), (-20, 42), (100, 192), (230, 218), (2000, 255))
SIDE = 512  # pixels
QUALITIES = 90, 85, 80  # of WebP: the best at which the images fit on a page
_SAMPLE = 16  # slices by which a page's weight is estimated
_OBLIQUE = 0.5  # cosine above which an edge has a second letter: 30° off the axis


class Frame(NamedTuple):
    """Where a slice lies in its square image: pixels of the image, and their size in mm.

    `spacing` is None where the file does not tell it.
    """

    top: int
    left: int
    rows: int
    columns: int
    side: int
    spacing: float | None


def bend_levels(hounsfield: np.ndarray) -> np.ndarray:
    """HU of any shape → uint8 levels along `POINTS`."""
    points, levels = zip(*POINTS, strict=True)
    return np.round(np.interp(hounsfield, points, levels)).astype(np.uint8)


def frame_slice(shape: tuple[int, ...], spacing: tuple[float, ...] | None) -> Frame:
    """Place a slice of (rows, columns) in the middle of a square of at most `SIDE` pixels.

    `spacing` is the distance of its rows and of its columns in mm. Pixels of the square are as
    wide as high.
    """
    steps = spacing or (1.0, 1.0)
    lengths = shape[0] * steps[0], shape[1] * steps[1]
    side = min(SIDE, round(max(lengths) / min(steps)))
    size = max(lengths) / side
    rows, columns = (max(1, round(length / size)) for length in lengths)
    top, left = (side - rows) // 2, (side - columns) // 2
    return Frame(top, left, rows, columns, side, size if spacing else None)


def draw_slice(hounsfield: np.ndarray, frame: Frame) -> np.ndarray:
    """Draw a slice, (rows, columns) HU, into its square of levels, uint8 (side, side)."""
    if hounsfield.shape != (frame.rows, frame.columns):
        hounsfield = cv2.resize(
            hounsfield.astype(np.float32), (frame.columns, frame.rows), interpolation=cv2.INTER_AREA
        )
    square = np.full((frame.side, frame.side), bend_levels(np.array(AIR)), dtype=np.uint8)
    rows, columns = (slice(at, at + n) for at, n in ((frame.top, frame.rows), frame[1:4:2]))
    square[rows, columns] = bend_levels(hounsfield)
    return square


def encode_levels(levels: np.ndarray, quality: int = QUALITIES[0]) -> str:
    """uint8 (side, side) → WebP in base64."""
    _, encoded = cv2.imencode(".webp", levels, [cv2.IMWRITE_WEBP_QUALITY, quality])
    return base64.b64encode(encoded.tobytes()).decode()


def place_view(view: tuple[float, ...], shape: tuple[int, ...], frame: Frame) -> list[float]:
    """Where a part of a slice lies in its square: left, top, width, height, each from 0 to 1.

    `view` is (top, left, rows, columns) in the slice's pixels.
    """
    scales = np.array([frame.rows / shape[0], frame.columns / shape[1]] * 2)
    top, left, rows, columns = np.array(view) * scales / frame.side
    corner = left + frame.left / frame.side, top + frame.top / frame.side
    return [round(float(value), 4) for value in (*corner, columns, rows)]


def find_letters(orientation: tuple[float, ...] | None) -> list[str]:
    """The letters of an image's left, right, top and bottom edge from ImageOrientationPatient.

    Each names where in the patient the edge lies: R or L, A or P, S or I. Where the direction is
    more than 30° off the axis, the next axis follows. No letters where the orientation is unknown.
    """
    if orientation is None:
        return []
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    return [_name_direction(direction) for direction in (-row, row, -column, column)]


def _name_direction(direction: np.ndarray) -> str:
    order = np.argsort(-np.abs(direction), kind="stable")
    named = [axis for axis in order if axis == order[0] or abs(direction[axis]) > _OBLIQUE]
    return "".join(("RL", "AP", "IS")[axis][int(direction[axis] > 0)] for axis in named)


def weigh_slices(paths: np.ndarray, quality: int, repair: bool) -> float:
    """Estimate the characters that a slice's image takes on a page, from a few of the files."""
    chosen = paths[np.unique(np.linspace(0, len(paths) - 1, _SAMPLE).astype(int))]
    sizes = []
    for path in chosen:
        try:
            hounsfield = read_hounsfield(path, repair)
        except (DicomError, MemoryError):
            continue  # it takes a sentence
        levels = draw_slice(hounsfield, frame_slice(hounsfield.shape, None))
        sizes.append(len(encode_levels(levels, quality)))
    return float(np.mean(sizes)) if sizes else 0.0
