"""Hounsfield units → the image that a model sees: windows, crop to the head, geometry."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kit import InputError
from kit.windowing.config import InputConfig

_PUBLISHED = InputConfig()


def render_image(hounsfield: np.ndarray, config: InputConfig) -> np.ndarray:
    """Turn a slice, (rows, cols) HU, into the image that a model sees of it, (S, S, windows).

    uint8, or float32 where the scale is not `uint8`. Raises `InputError` for values that are not
    finite.
    """
    size = config.image_size
    if config.geometry == "cut":
        return _pad_middle(window_image(_cut_middle(hounsfield, config), config), size)
    image = window_image(hounsfield, config)
    return resize_image(crop_to_head(image) if config.crop else image, size)


def window_image(hounsfield: np.ndarray, config: InputConfig = _PUBLISHED) -> np.ndarray:
    """Show a slice in the windows of `config`: (rows, cols) HU → (rows, cols, windows).

    By default uint8: each channel is clipped to its window, scaled to 0–1, lowered by its own
    minimum over the slice, multiplied by 255 and truncated, as in the reference implementation,
    which then has a JPEG step that is left out here. With the scale `unit`, float32 in 0–1; with
    `hounsfield`, float32 HU, clipped. Raises `InputError` if a value is not finite.
    """
    if hounsfield.dtype != np.int16 and not np.isfinite(hounsfield).all():
        raise InputError("the slice holds values that are not finite")
    ends = tuple((center - width // 2, center + width // 2) for center, width in config.windows)
    if config.scale == "hounsfield":
        return np.stack([np.clip(hounsfield, *end) for end in ends], -1).astype(np.float32)
    lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
    least = hounsfield.min() if config.subtract_minimum else lowest
    if config.scale == "unit":
        unit = _scale_to_windows(hounsfield.astype(np.float32), ends)
        # Not of a scalar: NumPy 1 would make it, and so the image, float64.
        return unit - _scale_to_windows(np.full(1, least, np.float32), ends)
    if hounsfield.dtype == np.int16 and len(ends) == 3:
        return _look_up(hounsfield, _window_table(min(max(int(least), lowest), highest), ends))
    minimum = _scale_to_windows(np.array(least, np.float64), ends)
    image = np.empty((*hounsfield.shape, len(ends)), dtype=np.uint8)
    # In strips: float64 takes a hundred bytes a pixel, which of the whole image would be too many.
    for start in range(0, len(image), 64):
        rows = slice(start, start + 64)
        scaled = _scale_to_windows(hounsfield[rows].astype(np.float64), ends)
        image[rows] = ((scaled - minimum) * 255).astype(np.uint8)
    return image


def crop_to_head(image: np.ndarray) -> np.ndarray:
    """Cut the bounding box of non-zero pixels: (rows, cols, C) → square (n, n, C).

    The box lies at the top left of a zero square whose side is the larger of its rows and columns,
    never below 3. An all-black image is not cropped, only put in a square.
    """
    top, left, bottom, right = _find_head(image)
    image = image[top:bottom, left:right]
    side = max(3, *image.shape[:2])
    if image.shape[:2] == (side, side):
        return np.ascontiguousarray(image)
    square = np.zeros((side, side, image.shape[2]), dtype=image.dtype)
    square[: image.shape[0], : image.shape[1]] = image
    return square


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize to (size, size, C)."""
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(size, size, -1)  # OpenCV drops the axis of a single channel


def find_view(hounsfield: np.ndarray, config: InputConfig) -> tuple[float, float, float, float]:
    """Find what `render_image` shows of a slice: (top, left, rows, columns) in the slice's pixels.

    Where the image is padded, it reaches beyond the slice.
    """
    (rows, columns), size = hounsfield.shape, config.image_size
    if config.geometry == "cut" and max(rows, columns) <= config.largest_cut:
        # As `_pad_middle` after `_cut_middle`: whichever of them works, halves are rounded down.
        top, left = (-((size - n) // 2) if n < size else (n - size) // 2 for n in hounsfield.shape)
        return top, left, size, size
    if config.geometry == "cut" or not config.crop:
        return 0, 0, rows, columns
    top, left, bottom, right = _find_head(window_image(hounsfield, config))
    side = max(3, bottom - top, right - left)
    return top, left, side, side


def _find_head(image: np.ndarray) -> tuple[int, int, int, int]:
    """The bounding box of non-zero pixels: top, left, bottom, right; all of a black image."""
    seen = image if image.dtype == np.uint8 else image != 0
    # OR-ing whole rows is an order of magnitude faster than a maximum over three channels.
    rows = np.flatnonzero(seen.reshape(len(seen), -1).any(axis=1))
    columns = np.flatnonzero(np.bitwise_or.reduce(seen, axis=0).any(axis=1))
    if not len(rows):
        return 0, 0, *image.shape[:2]
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _cut_middle(hounsfield: np.ndarray, config: InputConfig) -> np.ndarray:
    """Cut the middle of a frame, at most S × S; a frame above the limit is resized to S × S."""
    size = config.image_size
    if max(hounsfield.shape) > config.largest_cut:
        frame = hounsfield.astype(np.float32)
        return cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA)
    top, left = (max(0, length - size) // 2 for length in hounsfield.shape)
    return hounsfield[top : top + size, left : left + size]


def _pad_middle(image: np.ndarray, size: int) -> np.ndarray:
    """Pad (rows, cols, C) with zeros on all sides to (size, size, C)."""
    around = [((size - length) // 2, (size - length + 1) // 2) for length in image.shape[:2]]
    return np.pad(image, [*around, (0, 0)])


def _scale_to_windows(hounsfield: np.ndarray, ends: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Float HU (...) → (..., windows) in 0–1."""
    channels = [(np.clip(hounsfield, low, high) - low) / (high - low) for low, high in ends]
    return np.stack(channels, axis=-1)


def _look_up(hounsfield: np.ndarray, table: pa.Array) -> np.ndarray:
    # Arrow looks up by 16-bit indices as they are; NumPy would first make them 64-bit.
    content = pa.py_buffer(np.ascontiguousarray(hounsfield))
    values = pa.Array.from_buffers(pa.uint16(), hounsfield.size, [None, content])
    packed = pc.take(table, values, boundscheck=False).to_numpy().view(np.uint8)
    # Four bytes a pixel make the look-up one pass; OpenCV drops the fourth fastest.
    return cv2.cvtColor(packed.reshape(*hounsfield.shape, 4), cv2.COLOR_BGRA2BGR)


@lru_cache(maxsize=512)
def _window_table(minimum: int, ends: tuple[tuple[int, int], ...]) -> pa.Array:
    """Look-up table of all int16 values, as uint16, for a slice whose least value is `minimum`.

    One uint32 per value: the three channels and an unused byte.
    """
    table = np.zeros((1 << 16, 4), dtype=np.uint8)
    lowest = _scale_to_windows(np.array(minimum, np.float64), ends)
    # Values below the slice's minimum do not occur in it.
    table[:, :3] = np.maximum(_scale_values(ends) - lowest, 0) * 255
    return pa.array(table.view(np.uint32).reshape(-1))


@lru_cache(maxsize=1)
def _scale_values(ends: tuple[tuple[int, int], ...]) -> np.ndarray:
    """All int16 values in the windows, in the order of their bytes as uint16: (65536, 3), 0–1."""
    values = np.arange(1 << 16, dtype=np.uint16).view(np.int16)
    return _scale_to_windows(values.astype(np.float64), ends)
