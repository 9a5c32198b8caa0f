"""The header of one DICOM file: whether it is that of a CT slice, or why it is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from pydicom.dataset import FileDataset
from pydicom.multival import MultiValue
from pydicom.pixels import get_decoder
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    LegacyConvertedEnhancedCTImageStorage,
)

from kit.dicom.parsing import (
    MAX_PIXELS,
    PARSE_ERRORS,
    DicomError,
    UnreadableError,
    parse_file,
    parse_numbers,
    read_leniently,
)
from kit.files import Reason

_HEADER_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID",
    "Modality", "ImageType", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "RescaleType",
]  # fmt: skip

_TAGS = {keyword: Tag(keyword) for keyword in _HEADER_TAGS}
_BINARY = {
    "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation"
}  # fmt: skip

NATIVE_SYNTAXES = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian}

_NOT_HOUNSFIELD = "values are not Hounsfield units"
_DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"


class NotACTSliceError(DicomError):
    """A DICOM file, but not one axial CT slice in Hounsfield units."""


class PixelError(DicomError):
    """A CT slice whose pixels are missing, cut short, or cannot be decoded."""


class Header(NamedTuple):
    """What a file says of itself.

    `values` has every keyword of `_HEADER_TAGS`: int where the element is binary, else text
    (several values joined by a backslash), or None; `syntax` is the transfer syntax; `pixel_bytes`
    is how many bytes there are for the pixels.
    """

    values: dict[str, Any]
    syntax: UID
    pixel_bytes: int


@read_leniently()
def read_header(path: str | Path) -> Header:
    """Read the tags of `_HEADER_TAGS` without the pixels, and check that the file is a CT slice.

    `path` is a file, or a member of a zip archive written `archive.zip/member`. Raises
    `UnreadableError` and `NotACTSliceError`.
    """
    return check_header(*parse_file(path, list(_TAGS.values())), path)


def check_header(dataset: FileDataset, bytes_left: int, path: str | Path) -> Header:
    """The header's values; raises `NotACTSliceError` unless they describe one CT slice in HU."""
    implicit, little = dataset.original_encoding
    bare = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    bare = bare if little else ExplicitVRBigEndian
    before_pixels = 8 if implicit else 12  # bytes of the tag, the type and the length
    values, keyword = {}, "TransferSyntaxUID"
    try:
        syntax = UID(dataset.file_meta.get(keyword) or bare)
        for keyword in _HEADER_TAGS:
            values[keyword] = _read_value(dataset, keyword)
    except PARSE_ERRORS as error:
        raise NotACTSliceError(path, f"{keyword} cannot be read") from error
    if not any(values.values()):  # what pydicom makes of a coded file that ends too early
        raise UnreadableError(path, "file is cut short, or holds no image")
    reason = (
        _check_kind(values)
        or _check_size(values)
        or _check_units(values)
        or _check_compression(syntax)
    )
    if reason:
        raise NotACTSliceError(path, *reason)
    return Header(values, syntax, max(0, bytes_left - before_pixels))


def _read_value(dataset: FileDataset, keyword: str) -> int | str | None:
    """A value in plain form; ASCII is taken from the raw bytes, which is four times faster."""
    element: Any = dataset.get_item(_TAGS[keyword])
    value = None if element is None else element.value
    if value is None or len(value) == 0:
        return None
    if keyword in _BINARY:
        if len(value) not in (2, 4):
            raise ValueError(f"{len(value)} bytes are not one number")
        return int.from_bytes(value, "little" if element.is_little_endian else "big")
    if isinstance(value, bytes) and value.isascii() and b"\x1b" not in value:  # no other charset
        return value.decode("ascii").strip(" \0") or None
    value = dataset[_TAGS[keyword]].value
    values = list(value) if isinstance(value, MultiValue) else [value]
    if not all(isinstance(one, str | int | float) for one in values):
        raise ValueError("it is of another type")
    return "\\".join(map(str, values)).strip(" \0") or None


def _check_kind(values: dict[str, Any]) -> Reason | None:
    """Why this is not one grayscale image of the CT's axial slices, or None."""
    sop_class = values["SOPClassUID"]  # the competition's own files carry none
    if values["Modality"] is None:
        return Reason("Modality is missing")
    if values["Modality"] != "CT":
        known = f" ({_name_uid(sop_class)})" if sop_class else ""
        return Reason("not a CT image", f"Modality is {_quote(values['Modality'])}{known}")
    if sop_class and sop_class not in (CTImageStorage, LegacyConvertedEnhancedCTImageStorage):
        return Reason("not a CT image", f"SOPClassUID is {_name_uid(sop_class)}")
    kinds = (values["ImageType"] or "").upper().split("\\")
    for kind in ("LOCALIZER", "SCOUT"):
        if kind in kinds:
            return Reason("a localizer, not an axial slice", f"ImageType says {kind}")
    if values["SamplesPerPixel"] not in (None, 1):
        return Reason("a colour image", f"SamplesPerPixel is {values['SamplesPerPixel']}")
    photometric = values["PhotometricInterpretation"]
    if photometric is None:
        return Reason("PhotometricInterpretation is missing")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        detail = f"PhotometricInterpretation is {_quote(photometric)}"
        return Reason("not a grayscale image", detail)
    frames = values["NumberOfFrames"] or "1"
    if parse_numbers(frames) != (1,):
        return Reason("not one slice in one file", f"NumberOfFrames is {_show_number(frames)}")
    return None


def _check_size(values: dict[str, Any]) -> Reason | None:
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"):
        if values[keyword] is None:
            return Reason(f"{keyword} is missing")
    rows, columns = values["Rows"], values["Columns"]
    if rows < 1 or columns < 1 or rows * columns > MAX_PIXELS:
        return Reason("image size is not that of a CT slice", f"{rows} x {columns} pixels")
    allocated, stored = values["BitsAllocated"], values["BitsStored"]
    if not (allocated in (16, 32) and 8 < stored <= allocated):
        return Reason("pixels cannot hold Hounsfield units", f"{stored} bits stored in {allocated}")
    signed = values["PixelRepresentation"]
    if signed not in (0, 1):
        return Reason("PixelRepresentation is neither 0 nor 1", f"it is {signed}")
    return None


def _check_units(values: dict[str, Any]) -> Reason | None:
    # Steps of 0.01 HU are below all noise; of 16 HU, 12 bits span what 16 bits of 1 HU do.
    for keyword, low, high in (("RescaleSlope", 0.01, 16), ("RescaleIntercept", -32768, 32768)):
        text = values[keyword]
        if text is None:
            return Reason("values are not known to be Hounsfield units", f"{keyword} is missing")
        numbers = parse_numbers(text)
        if numbers is None or len(numbers) != 1 or not low <= numbers[0] <= high:
            return Reason(_NOT_HOUNSFIELD, f"{keyword} is {_show_number(text)}")
    kind = values["RescaleType"]
    if kind and kind.upper() not in ("HU", "US"):  # unspecified, which in a CT slice means HU too
        return Reason(_NOT_HOUNSFIELD, f"RescaleType is {_quote(kind)}")
    return None


def _check_compression(syntax: UID) -> Reason | None:
    if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
        return Reason("compression does not keep Hounsfield units", syntax.name)
    if syntax in NATIVE_SYNTAXES:
        return None
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        return Reason("there is no decoder for its compression", _name_uid(syntax))
    if not available:
        return Reason("a decoder is not installed", f"{syntax.name} needs {_DECODERS}")
    return None


def _quote(text: str) -> str:
    """A text of the form of a DICOM code, such as MR or YBR_FULL.

    Others are not quoted: in a broken header they may be the patient's name or a date.
    """
    return text if re.fullmatch(r"[A-Z]{2}|[A-Z]+(_[A-Z0-9]+)+", text) else "another"


def _name_uid(uid: str) -> str:
    name = UID(uid).name
    return name if name != uid else "an unknown UID"


def _show_number(text: str) -> str:
    """A number too short to be a date, or that it is none."""
    numbers = parse_numbers(text)
    if numbers is None or len(numbers) != 1 or numbers[0] != numbers[0]:
        return "not a number"
    return f"{numbers[0]:g}" if abs(numbers[0]) < 1e5 else "beyond 100000"
