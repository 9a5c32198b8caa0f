"""One file's row of the slice table: what its header says, or why it cannot be used.

The index's worker processes import this alone: pandas would double the time of their start.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from operator import mul
from typing import Any

from kit.dicom import header, pixels
from kit.dicom.parsing import DicomError, parse_numbers
from kit.files import Reason

_parse_cached = lru_cache(maxsize=1024)(parse_numbers)  # most texts recur over a series

HEADER_COLUMNS = (
    "SOPInstanceUID",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "InstanceNumber",
    "PixelSpacing",
    "SliceThickness",
    "Rows",
    "Columns",
)

_IDENTITY = HEADER_COLUMNS[:4]

_FARTHEST = 1e5  # mm from the scanner's origin: a hundred metres are in no scanner

# What no text holds: control characters, halves of characters.
_UNSAFE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def read_entries(paths: list[str]) -> list[tuple]:
    """`read_entry` of each file."""
    return [read_entry(path) for path in paths]


def read_entry(path: str) -> tuple:
    """(path, reason, code, repaired, *the header's `HEADER_COLUMNS`); None where not known.

    `reason` and its `code` are None for a file that can be used. Nothing is raised: what is wrong
    with the file is its reason.
    """
    nothing = (None,) * (1 + len(HEADER_COLUMNS))
    if not _is_text(path):
        shown = path.encode("utf-8", "backslashreplace").decode("utf-8")
        code = "file's name is not UTF-8 text"
        return (shown, f"{code}: rename it", code, *nothing)
    try:
        found = header.read_header(path)
    except DicomError as error:
        return (path, error.reason, error.code, *nothing)
    reason = _check_identity(found.values) or _check_position(found.values)
    if reason:
        return (path, str(reason), reason.code, *nothing)
    found.values.update(dict.fromkeys(_find_nonsense(found.values)))
    values = [found.values[name] for name in HEADER_COLUMNS]
    reason = pixels.check_pixel_bytes(found)
    explained = (str(reason), reason.code) if reason else (None, None)
    return (path, *explained, pixels.has_wrong_intercept(found), *values)


def _is_text(path: str) -> bool:
    return path.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in path)


def _check_identity(values: dict[str, Any]) -> Reason | None:
    for name in ("SOPInstanceUID", "SeriesInstanceUID"):
        if not values[name]:
            return Reason(f"{name} is missing")
    for name in _IDENTITY:
        if values[name] and _UNSAFE.search(values[name]):
            return Reason(f"{name} holds characters that are not text")
    return None


def _check_position(values: dict[str, Any]) -> Reason | None:
    """Position and orientation must be possible; the latter two unit vectors at right angles."""
    for name, size in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6)):
        text = values[name]
        if text is None:
            continue
        numbers = _parse_cached(text)
        if numbers is None or not all(map(math.isfinite, numbers)):
            return Reason(f"{name} is not {size} numbers")
        if len(numbers) != size:
            return Reason(f"{name} is not {size} numbers", f"it holds {len(numbers)}")
        if size == 3 and max(map(abs, numbers)) > _FARTHEST:
            return Reason(f"{name} cannot be millimetres in a scanner")
        if size == 6 and not _are_axes(numbers[:3], numbers[3:]):
            return Reason(f"{name} is not two unit vectors at right angles")
    return None


def _is_whole(number: float) -> bool:
    return number.is_integer() and abs(number) < 2**31


def _is_length(number: float) -> bool:
    return 0 < number < 1000  # mm


_FORMS = {
    "InstanceNumber": (1, _is_whole),
    "PixelSpacing": (2, _is_length),
    "SliceThickness": (1, _is_length),
}


def _find_nonsense(values: dict[str, Any]) -> Iterator[str]:
    """Optional numeric fields whose value is not a valid number.

    They are blanked: in a corrupt header they may hold anything, even a name.
    """
    for name, (size, is_possible) in _FORMS.items():
        if values[name] is not None:
            numbers = _parse_cached(values[name])
            if numbers is None or len(numbers) != size or not all(map(is_possible, numbers)):
                yield name


def _are_axes(row: tuple[float, ...], column: tuple[float, ...]) -> bool:
    lengths = (math.hypot(*row), math.hypot(*column))
    return (
        all(abs(length - 1) < 0.03 for length in lengths) and abs(sum(map(mul, row, column))) < 0.05
    )
