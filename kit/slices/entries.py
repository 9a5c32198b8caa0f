"""One file's row of the slice table: what its header says, or why it cannot be used.

The index's worker processes import this alone: pandas would double the time of their start.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from operator import mul

from kit.dicom import pixels as dicom

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
    """(path, reason or None, repaired, *the header's `HEADER_COLUMNS`); None where not known.

    Nothing is raised: what is wrong with the file is its reason.
    """
    nothing = (None,) * (1 + len(HEADER_COLUMNS))
    if not _is_text(path):
        shown = path.encode("utf-8", "backslashreplace").decode("utf-8")
        return (shown, "the file's name is not UTF-8 text: rename it", *nothing)
    try:
        header = dicom.read_header(path)
    except dicom.DicomError as error:
        return (path, error.reason, *nothing)
    reason = _reason_against_identity(header.values) or _reason_against_place(header.values)
    if reason:
        return (path, reason, *nothing)
    header.values.update(dict.fromkeys(_find_nonsense(header.values)))
    values = [header.values[name] for name in HEADER_COLUMNS]
    reason = dicom.find_missing_pixels(header)
    return (path, reason, dicom.has_wrong_intercept(header), *values)


def _is_text(path: str) -> bool:
    return path.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in path)


def _reason_against_identity(values: dict) -> str | None:
    for name in ("SOPInstanceUID", "SeriesInstanceUID"):
        if not values[name]:
            return f"{name} is missing"
    for name in _IDENTITY:
        if values[name] and _UNSAFE.search(values[name]):
            return f"{name} holds characters that are no text"
    return None


def _reason_against_place(values: dict) -> str | None:
    """Position and orientation must be possible; the latter two unit vectors at right angles."""
    for name, size in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6)):
        if values[name] is None:
            continue
        numbers = _parse_numbers(values[name])
        if numbers is None:
            return f"{name} is not {size} numbers"
        if len(numbers) != size:
            return f"{name} holds {len(numbers)} numbers, not {size}"
        if not all(map(math.isfinite, numbers)):
            return f"{name} is not finite"
        if size == 3 and max(map(abs, numbers)) > _FARTHEST:
            return f"{name} cannot be millimetres in a scanner"
        if size == 6 and not _are_axes(numbers[:3], numbers[3:]):
            return f"{name} is not two unit vectors at right angles"
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


def _find_nonsense(values: dict) -> Iterator[str]:
    """Of the values that are of use but not needed, those that are not the numbers they should be.

    In a broken header they may be anything, such as the patient's name, and the table keeps them.
    """
    for name, (size, is_possible) in _FORMS.items():
        if values[name] is not None:
            numbers = _parse_numbers(values[name])
            if numbers is None or len(numbers) != size or not all(map(is_possible, numbers)):
                yield name


@lru_cache(maxsize=1024)  # most texts are the same over a series
def _parse_numbers(text: str) -> tuple[float, ...] | None:
    """The numbers of a DICOM text, None where it holds something else."""
    try:
        return tuple(map(float, text.split("\\")))
    except ValueError:
        return None


def _are_axes(row: tuple[float, ...], column: tuple[float, ...]) -> bool:
    lengths = (math.hypot(*row), math.hypot(*column))
    return (
        all(abs(length - 1) < 0.03 for length in lengths) and abs(sum(map(mul, row, column))) < 0.05
    )
