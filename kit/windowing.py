"""Hounsfield units → an image in three windows; crop to the head; resize."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kit import InputError

# (center, width) in HU of the channels: brain, subdural, soft tissue. From the solution's
# code and write-up (2nd place, RSNA Intracranial Hemorrhage Detection, 2019).
WINDOWS = ((40, 80), (80, 200), (40, 380))

_LOWEST = min(center - width // 2 for center, width in WINDOWS)
_HIGHEST = max(center + width // 2 for center, width in WINDOWS)


def window_image(hounsfield: np.ndarray) -> np.ndarray:
    """Show a slice in the three windows: (rows, cols) HU → uint8 (rows, cols, 3).

    Each channel is clipped to its window, scaled to 0–1, lowered by its own minimum over the
    slice, multiplied by 255 and truncated, as in the reference implementation, which then has a
    JPEG step that is left out here.
    Raises `InputError` if a value is not finite.
    """
    if hounsfield.dtype == np.int16:
        table = _window_table(int(np.clip(hounsfield.min(), _LOWEST, _HIGHEST)))
        # Arrow looks up by 16-bit indices as they are; NumPy would first make them 64-bit.
        values = pa.array(hounsfield.view(np.uint16).ravel())
        packed = pc.take(pa.array(table), values, boundscheck=False).to_numpy().view(np.uint8)
        # Four bytes a pixel make the look-up one pass; OpenCV drops the fourth fastest.
        return cv2.cvtColor(packed.reshape(*hounsfield.shape, 4), cv2.COLOR_BGRA2BGR)
    if not np.isfinite(hounsfield).all():
        raise InputError("the slice holds values that are not finite")
    minimum = _scale_to_windows(np.array(hounsfield.min(), np.float64))
    image = np.empty((*hounsfield.shape, 3), dtype=np.uint8)
    # In strips: float64 takes a hundred bytes a pixel, which of the whole image would be too many.
    for start in range(0, len(image), 64):
        rows = slice(start, start + 64)
        image[rows] = _quantize(_scale_to_windows(hounsfield[rows].astype(np.float64)), minimum)
    return image


def crop_to_head(image: np.ndarray) -> np.ndarray:
    """Cut the bounding box of non-zero pixels: uint8 (rows, cols, C) → square uint8 (n, n, C).

    The box lies at the top left of a zero square whose side is the larger of its rows and columns,
    never below 3. An all-black image is not cropped, only put in a square.
    """
    # OR-ing whole rows is an order of magnitude faster than a maximum over three channels.
    rows = np.flatnonzero(image.reshape(len(image), -1).any(axis=1))
    columns = np.flatnonzero(np.bitwise_or.reduce(image, axis=0).any(axis=1))
    if len(rows):
        image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(3, *image.shape[:2])
    if image.shape[:2] == (side, side):
        return np.ascontiguousarray(image)
    square = np.zeros((side, side, image.shape[2]), dtype=np.uint8)
    square[: image.shape[0], : image.shape[1]] = image
    return square


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize to uint8 (size, size, C)."""
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)


def _scale_to_windows(hounsfield: np.ndarray) -> np.ndarray:
    """Float64 HU (...) → (..., 3) in 0–1."""
    channels = []
    for center, width in WINDOWS:
        low, high = center - width // 2, center + width // 2
        channels.append((np.clip(hounsfield, low, high) - low) / (high - low))
    return np.stack(channels, axis=-1)


def _quantize(channels: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    return ((channels - minimum) * 255).astype(np.uint8)


@lru_cache(maxsize=512)
def _window_table(minimum: int) -> np.ndarray:
    """Look-up table of all int16 values, as uint16, for a slice whose least value is `minimum`.

    One uint32 per value: the three channels and an unused byte.
    """
    table = np.zeros((1 << 16, 4), dtype=np.uint8)
    lowest = _scale_to_windows(np.array(minimum, np.float64))
    # Values below the slice's minimum do not occur in it.
    table[:, :3] = np.maximum(_scale_values() - lowest, 0) * 255
    return table.view(np.uint32).reshape(-1)


@lru_cache(maxsize=1)
def _scale_values() -> np.ndarray:
    """All int16 values in the windows, in the order of their bytes as uint16: (65536, 3), 0–1."""
    return _scale_to_windows(np.arange(1 << 16, dtype=np.uint16).view(np.int16).astype(np.float64))
