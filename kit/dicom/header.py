"""The header of one DICOM file: whether it is that of a CT slice, or why it is not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pydicom
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

from kit.dicom.content import MAX_PIXELS
from kit.dicom.parsing import PARSE_ERRORS, DicomError, UnreadableError, parse_file

HEADER_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID",
    "Modality", "ImageType", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "RescaleType",
]  # fmt: skip

_TAGS = {keyword: Tag(keyword) for keyword in HEADER_TAGS}
_BINARY = {
    "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation"
}  # fmt: skip

# What a reason may quote: codes of modalities, colours and units, as the standard lists them.
_CODES = {
    "CR", "DX", "ECG", "ES", "HD", "IO", "IVUS", "KO", "MG", "MR", "NM", "OCT", "OP", "OT", "PR",
    "PT", "PX", "REG", "RF", "RTDOSE", "RTIMAGE", "RTPLAN", "RTSTRUCT", "SEG", "SM", "SR", "US",
    "XA", "XC", "RGB", "HSV", "ARGB", "CMYK", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422",
    "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", "ED", "EDW", "HU_MOD", "MGML",
    "OD", "PCT", "Z_EFF",
}  # fmt: skip

NATIVE_SYNTAXES = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian}


class NotACTSliceError(DicomError):
    """A DICOM file, but not one axial CT slice in Hounsfield units."""


class PixelError(DicomError):
    """A CT slice whose pixels are missing, cut short, or cannot be decoded."""


class Header(NamedTuple):
    """What a file says of itself.

    `values` has every keyword of `HEADER_TAGS`: int, text (several values joined by a backslash)
    or None; `syntax` is the transfer syntax; `pixel_bytes` is how many bytes there are for the
    pixels.
    """

    values: dict[str, int | str | None]
    syntax: UID
    pixel_bytes: int


def read_header(path: str | Path) -> Header:
    """Read the tags of `HEADER_TAGS` without the pixels, and check that the file is a CT slice.

    `path` is a file, or a member of a zip archive written `archive.zip/member`. Raises
    `UnreadableError` and `NotACTSliceError`.
    """
    return check_header(*parse_file(path, list(_TAGS.values())), path)


def check_header(
    dataset: pydicom.Dataset, meta: Mapping, bytes_left: int, path: str | Path
) -> Header:
    """The header's values; `NotACTSliceError` unless they are a single CT slice's in HU."""
    implicit, little = dataset.original_encoding
    bare = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    bare = bare if little else ExplicitVRBigEndian
    tag = 8 if implicit else 12  # bytes before the pixels: tag, type, length
    values, keyword = {}, "TransferSyntaxUID"
    try:
        syntax = UID(meta.get(keyword) or bare)
        for keyword in HEADER_TAGS:
            values[keyword] = _read_value(dataset, keyword)
    except PARSE_ERRORS as error:
        raise NotACTSliceError(path, f"{keyword} cannot be read") from error
    if not any(values.values()):  # what pydicom makes of a coded file that ends too early
        raise UnreadableError(path, "the file is cut short, or holds no image")
    header = Header(values, syntax, max(0, bytes_left - tag))
    reason = _reason_against(header)
    if reason:
        raise NotACTSliceError(path, reason)
    return header


def _read_value(dataset: pydicom.Dataset, keyword: str) -> int | str | None:
    """A value in plain form; from the raw bytes where they are ASCII: four times faster."""
    element = dataset.get_item(_TAGS[keyword])
    value = None if element is None else element.value
    if value is None or len(value) == 0:
        return None
    if keyword in _BINARY:
        if len(value) not in (2, 4):
            raise ValueError(f"{len(value)} bytes are no single number")
        return int.from_bytes(value, "little" if element.is_little_endian else "big")
    if isinstance(value, bytes) and value.isascii() and b"\x1b" not in value:  # no other charset
        return value.decode("ascii").strip(" \0") or None
    value = dataset[_TAGS[keyword]].value
    values = list(value) if isinstance(value, MultiValue) else [value]
    if not all(isinstance(one, str | int | float) for one in values):
        raise ValueError("it is of another type")
    return "\\".join(map(str, values)).strip(" \0") or None


def _reason_against(header: Header) -> str | None:
    """Why this header is not that of a CT slice, or None."""
    values = header.values
    if values["Modality"] is None:
        return "Modality is missing"
    if values["Modality"] != "CT":
        return f"Modality is {_quote(values['Modality'])}, not 'CT'"
    # The competition's own files carry no SOPClassUID.
    sop_class = values["SOPClassUID"]
    if sop_class and sop_class not in (CTImageStorage, LegacyConvertedEnhancedCTImageStorage):
        return f"not a CT image but {_name_uid(sop_class)}"
    kinds = (values["ImageType"] or "").upper().split("\\")
    for kind in ("LOCALIZER", "SCOUT"):
        if kind in kinds:
            return f"ImageType says {kind}"
    photometric = values["PhotometricInterpretation"]
    if values["SamplesPerPixel"] not in (None, 1):
        return f"a colour image ({_quote(photometric)})"
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return f"PhotometricInterpretation is {_quote(photometric)}"
    frames = _to_number(values["NumberOfFrames"] or "1")
    if frames != 1:
        return f"holds {_show(frames)} frames, not one slice"
    return _reason_against_size(values) or _reason_against_values(values, header.syntax)


def _reason_against_size(values: dict) -> str | None:
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"):
        if values[keyword] is None:
            return f"{keyword} is missing"
    rows, columns = values["Rows"], values["Columns"]
    if rows < 1 or columns < 1 or rows * columns > MAX_PIXELS:
        return f"an image of {rows} x {columns} pixels is no CT slice"
    allocated, stored = values["BitsAllocated"], values["BitsStored"]
    if not (allocated in (16, 32) and 8 < stored <= allocated):
        return f"{stored} bits stored in {allocated} cannot hold Hounsfield units"
    if values["PixelRepresentation"] not in (0, 1):
        return f"PixelRepresentation is {values['PixelRepresentation']}"
    return None


def _reason_against_values(values: dict, syntax: UID) -> str | None:
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        if values[keyword] is None:
            return f"{keyword} is missing, so its values are not known to be Hounsfield units"
    slope, intercept = _to_number(values["RescaleSlope"]), _to_number(values["RescaleIntercept"])
    # Steps of 0.01 HU are below all noise; of 16 HU, 12 bits span what 16 bits of 1 HU do.
    if not 0.01 <= slope <= 16:
        return f"RescaleSlope {_show(slope)} cannot be that of Hounsfield units"
    if not abs(intercept) <= 32768:
        return f"RescaleIntercept {_show(intercept)} cannot be that of Hounsfield units"
    kind = values["RescaleType"]
    if kind and kind.upper() not in ("HU", "US"):  # unspecified: in a CT slice HU all the same
        return f"RescaleType is {_quote(kind)}, not 'HU'"
    if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
        return f"lossy {syntax.name} does not keep Hounsfield units"
    if syntax in NATIVE_SYNTAXES:
        return None
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        return f"there is no decoder for {_name_uid(syntax)}"
    if not available:
        return f"{syntax.name} needs a decoder that is not installed: pip install kit[decoders]"
    return None


def _to_number(text: str) -> float:
    """NaN where it is none, and so outside every range."""
    try:
        return float(text)
    except ValueError:
        return math.nan


# What a broken header says may be anything, such as the patient's name or a date: only what is
# known to be a code is quoted.
def _quote(code: str | None) -> str:
    if not code:
        return "missing"
    return repr(code) if code in _CODES else "not readable"


def _name_uid(uid: str) -> str:
    name = UID(uid).name
    return name if name != uid else "an unknown UID"


def _show(number: float) -> str:
    """A number too short to be a date."""
    return f"{number:g}" if not abs(number) >= 1e5 else "beyond 100000"
