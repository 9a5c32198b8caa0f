"""One file's row of the slice table: what its header says, or why it cannot be used.

The index's worker processes import this alone: pandas would double the time of their start.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from operator import mul
from typing import Any

from kit import escape_controls
from kit.dicom import header, nifti, pixels
from kit.dicom.checks import DESCRIPTIONS, LEAST_AIR, show_numbers
from kit.dicom.parsing import DicomError, parse_numbers
from kit.files import Reason
from kit.processes import blame_machine

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

# By these the table of series tells what a series is.
DESCRIPTION_COLUMNS = ("SeriesDescription", *DESCRIPTIONS)

# By these, slices are grouped and ordered where UIDs and positions do not tell.
GROUP_COLUMNS = ("FrameOfReferenceUID", "SeriesNumber", "AcquisitionNumber")

_OWN_COLUMNS = ("path", "reason", "code", "repaired", "note")
ENTRY_COLUMNS = (*_OWN_COLUMNS, *HEADER_COLUMNS, *GROUP_COLUMNS, *DESCRIPTION_COLUMNS)

_IDENTITY = HEADER_COLUMNS[:4]

# A slice that is left out for this alone keeps its columns: its series is listed.
NOT_AXIAL = "plane is not axial"

# What no text holds. The other control characters may be letters in a character set not named.
_UNSAFE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")

_LONGEST = 64  # characters of a description, as the standard has it
_FARTHEST = 1e5  # mm from the scanner's origin: a hundred metres are in no scanner
_LEAST_AXIAL = 0.7  # of a unit normal's z; gantries tilt to 30°, heads a little more
_UNSTATED = "its NIfTI image does not state how the patient lies"
_NO_AIR = "no value can be below -200 HU, so the rescale intercept may be wrong"


def read_entries(files: list[str | tuple[str, str]]) -> list[tuple]:
    """`read_entry` of each file, and `_read_volume` of each pair of a file and a name."""
    rows = []
    for file in files:
        rows.extend([read_entry(file)] if isinstance(file, str) else _read_volume(*file))
    return rows


def refuse_entry(path: str, reason: Reason) -> tuple:
    """The `ENTRY_COLUMNS` of a file of whose header nothing is used."""
    return (path, str(reason), reason.code, *[None] * (len(ENTRY_COLUMNS) - 3))


def read_entry(path: str) -> tuple:
    """The `ENTRY_COLUMNS` of one file; None where not known.

    `reason` and its `code` are None for a file that can be used. What is wrong with the file is its
    reason; `ScarcityError` is raised for what is wrong with the machine.
    """
    shown = escape_controls(path)
    if shown != path:
        code = "file's name holds characters that are not text"
        return refuse_entry(shown, Reason(code, "rename it"))
    try:
        found = header.read_header(path)
    except DicomError as error:
        blame_machine(error)
        return refuse_entry(path, Reason(error.code, error.detail))
    reason = _check_identity(found.values) or _check_position(found.values)
    if reason and reason.code != NOT_AXIAL:
        return refuse_entry(path, reason)
    found.values.update(dict.fromkeys(_find_nonsense(found.values)))
    repaired = False
    if not reason:
        reason, repaired = _check_pixels(path, found)
    explained = (str(reason), reason.code) if reason else (None, None)
    lowest = float(found.values["RescaleIntercept"])  # of values without a sign
    airless = not repaired and not found.values["PixelRepresentation"] and lowest > LEAST_AIR
    values = [found.values[name] for name in (*HEADER_COLUMNS, *GROUP_COLUMNS)]
    texts = [_describe(found.values[name]) for name in DESCRIPTION_COLUMNS]
    return (path, *explained, repaired, _NO_AIR if airless else None, *values, *texts)


def _read_volume(path: str, name: str) -> list[tuple]:
    """The `ENTRY_COLUMNS` of each slice of a NIfTI image, or of the file if it cannot be used.

    `name` stands for the patient, the study and the series, of which the file says nothing.
    """
    shown = escape_controls(path)
    if shown != path:
        return [read_entry(path)]
    try:
        volume = nifti.read_volume(path)
    except DicomError as error:
        blame_machine(error)
        return [refuse_entry(path, Reason(error.code, error.detail))]
    _, rows, columns = volume.values.shape
    values: dict[str, Any] = dict.fromkeys(ENTRY_COLUMNS)
    values |= dict.fromkeys(("PatientID", "StudyInstanceUID", "SeriesInstanceUID"), name)
    values["ImageOrientationPatient"] = _join(volume.orientation)
    values |= {"PixelSpacing": _join(volume.spacing), "Rows": rows, "Columns": columns}
    values |= {"repaired": False, "note": None if volume.stated else _UNSTATED}
    found = []
    for number, position in enumerate(volume.positions, start=1):
        values["ImagePositionPatient"] = _join(position)
        reason = _check_position(values)
        own = {
            "path": f"{path}/{number}",
            "reason": str(reason) if reason else None,
            "code": reason.code if reason else None,
            "SOPInstanceUID": f"{name}:{number}",
            "InstanceNumber": str(number),
        }
        found.append(tuple({**values, **own}.values()))
    return found


def _join(numbers: Iterable[float]) -> str:
    return "\\".join(f"{number:.8g}" for number in numbers)


def _describe(text: str | None) -> str | None:
    return text and escape_controls(text[:_LONGEST])


def _check_pixels(path: str, found: header.Header) -> tuple[Reason | None, bool]:
    """Why a file's pixels cannot be read, as far as is known, and whether its intercept is wrong.

    The latter takes reading the pixels of the few files whose header allows it.
    """
    reason = pixels.check_pixel_bytes(found)
    if reason or not pixels.may_have_wrong_intercept(found):
        return reason, False
    try:
        return None, pixels.has_wrong_intercept(path)
    except DicomError as error:
        return Reason(error.code, error.detail), False


def _check_identity(values: dict[str, Any]) -> Reason | None:
    for name in ("SOPInstanceUID", "SeriesInstanceUID"):
        if not values[name]:
            return Reason(f"{name} is missing")
    for name in _IDENTITY:
        if values[name] and _UNSAFE.search(values[name]):
            return Reason(f"{name} holds characters that are not text")
        values[name] = values[name] and escape_controls(values[name])
    return None


def _check_position(values: dict[str, Any]) -> Reason | None:
    """Position and orientation must be possible; the latter two unit vectors at right angles."""
    for name, size in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6)):
        text = values[name]
        if text is None:
            continue
        numbers = _parse_cached(text)
        if numbers is None or len(numbers) != size or not all(map(math.isfinite, numbers)):
            return Reason(f"{name} is not {size} numbers", f"it is {show_numbers(text)}")
        if size == 3 and max(map(abs, numbers)) > _FARTHEST:
            return Reason(f"{name} cannot be millimetres in a scanner")
        if size == 6:
            row, column = numbers[:3], numbers[3:]
            if not _are_axes(row, column):
                detail = f"it is {show_numbers(text)}"
                return Reason(f"{name} is not two unit vectors at right angles", detail)
            along = abs(row[0] * column[1] - row[1] * column[0])
            if along < _LEAST_AXIAL and not _is_called_axial(values):
                detail = f"its normal is {math.degrees(math.acos(along)):.0f}° off the body's axis"
                return Reason(NOT_AXIAL, detail)
    return None


def _is_called_axial(values: dict[str, Any]) -> bool:
    """Whether the scanner itself says so: a patient may lie with the head bent far back.

    Reformats by a workstation may say so too, of whatever they were made from.
    """
    kind = (values["ImageType"] or "").split("\\")
    return kind[:2] == ["ORIGINAL", "PRIMARY"] and "AXIAL" in kind


def _is_whole(number: float) -> bool:
    return number.is_integer() and abs(number) < 2**31


def _is_length(number: float) -> bool:
    return 0 < number < 1000  # mm


_FORMS = {
    "InstanceNumber": (1, _is_whole),
    "SeriesNumber": (1, _is_whole),
    "AcquisitionNumber": (1, _is_whole),
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
