"""The header of one DICOM file: whether it is that of a CT slice, or why it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydicom.dataset import FileDataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from kit.dicom.checks import (
    DESCRIPTIONS,
    FLOAT_PIXELS,
    NATIVE_SYNTAXES,
    check_compression,
    check_kind,
    check_size,
    check_units,
)
from kit.dicom.parsing import (
    PARSE_ERRORS,
    DicomError,
    Parsed,
    UnreadableError,
    parse_file,
    read_leniently,
)
from kit.files import Reason

_HEADER_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID", "SeriesNumber", "SeriesDescription", "AcquisitionNumber",
    "Modality", "ImageType", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept",
    "RescaleType",
]  # fmt: skip

_TAGS = {keyword: Tag(keyword) for keyword in (*_HEADER_TAGS, *DESCRIPTIONS)}
_BINARY = {
    "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit",
}  # fmt: skip

_MODALITY_LUT = Tag("ModalityLUTSequence")
_PIXEL_DATA = Tag("PixelData")
_UNDEFINED = 0xFFFFFFFF  # the length of what ends with a delimiter
_PIXEL_VRS = (b"OB", b"OW", b"OF", b"OD", b"UN")
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # an item's tag in either byte order


class NotACTSliceError(DicomError):
    """A DICOM file, but not one axial CT slice in Hounsfield units."""


class PixelError(DicomError):
    """A CT slice whose pixels are missing, cut short, or cannot be decoded."""


class Header(NamedTuple):
    """What a file says of itself.

    `values` has every keyword of `_HEADER_TAGS` and `DESCRIPTIONS`: int where the element is
    binary, else text (several values joined by a backslash), or None. `syntax` is the transfer
    syntax, a native one where the pixels are evidently not coded. `pixel_bytes` is how many bytes
    there are for the pixels, None without Pixel Data; `itemized` says that they lie in items.
    """

    values: dict[str, Any]
    syntax: UID
    pixel_bytes: int | None
    itemized: bool


@read_leniently()
def read_header(path: str | Path) -> Header:
    """Read the tags of `_HEADER_TAGS` without the pixels, and check that the file is a CT slice.

    `path` is a file, or a member of a zip archive written `archive.zip/member`. Raises
    `UnreadableError` and `NotACTSliceError`.
    """
    return check_header(parse_file(path, [*_TAGS.values(), _MODALITY_LUT]), path)


def check_header(parsed: Parsed, path: str | Path) -> Header:
    """The header's values; raises `NotACTSliceError` unless they describe one CT slice in HU."""
    dataset, values, keyword = parsed.dataset, {}, "TransferSyntaxUID"
    try:
        little = dataset.original_encoding[1]
        bare = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        syntax = UID(dataset.file_meta.get(keyword) or bare)
        for keyword in _HEADER_TAGS:
            values[keyword] = _read_value(dataset, keyword)
        for keyword in DESCRIPTIONS:
            values[keyword] = _read_description(dataset, keyword)
        keyword = "PixelData"
        elements = {tag: dataset.get_item(tag) for tag in (_PIXEL_DATA, *FLOAT_PIXELS)}
        keyword = "MediaStorageSOPClassUID"
        kind = None if any(values.values()) else dataset.file_meta.get(keyword, "")
    except PARSE_ERRORS as error:
        raise NotACTSliceError(path, f"{keyword} cannot be read") from error
    tag, start, pixel_bytes, undefined = _find_pixels(parsed, elements)
    if kind == MediaStorageDirectoryStorage:
        raise UnreadableError(path, "a DICOMDIR, which lists files and holds no image")
    if kind is not None:  # what pydicom makes of a coded file that ends too early
        raise UnreadableError(path, "file is cut short, or holds no image")
    reason = (
        check_kind(values)
        or check_size(values, tag)
        or check_units(values, _MODALITY_LUT in dataset)
    )
    coded = syntax not in NATIVE_SYNTAXES
    itemized = start in _ITEMS and (undefined or coded)
    if not reason and coded and len(start) == 4 and not itemized:
        if pixel_bytes != count_pixel_bytes(values):
            reason = Reason("pixel data is not coded as its transfer syntax says", syntax.name)
        syntax = ExplicitVRLittleEndian
    reason = reason or check_compression(syntax)
    if reason:
        raise NotACTSliceError(path, *reason)
    return Header(values, syntax, pixel_bytes if tag == _PIXEL_DATA else None, itemized)


def count_pixel_bytes(values: dict[str, Any]) -> int:
    """How many bytes the pixels take that a header of these `values` describes, not coded."""
    return values["Rows"] * values["Columns"] * values["BitsAllocated"] // 8


def _find_pixels(parsed: Parsed, elements: dict[int, Any]) -> tuple[int, bytes, int, bool]:
    """The pixels' tag, their first bytes, how many there are, and whether a delimiter ends them.

    `elements` are those that may hold pixels, None where they are not there. If the Pixel Data were
    not read, what stands at their place says so: the data set may have another form than the file's
    meta information tells.
    """
    for tag, element in elements.items():
        if element is not None:
            value = element.value if isinstance(element.value, bytes) else b""
            undefined = getattr(element, "length", _UNDEFINED) == _UNDEFINED
            return tag, value[:4], len(value), undefined
    start, little = parsed.next_bytes, parsed.dataset.original_encoding[1]
    order: Literal["little", "big"] = "little" if little else "big"
    tag = int.from_bytes(start[:2], order) << 16 | int.from_bytes(start[2:4], order)
    # With a VR, or, in implicit VR, an even length, whose first byte is none of these letters.
    size = 12 if start[4:6] in _PIXEL_VRS else 8
    length, left = int.from_bytes(start[size - 4 : size], order), parsed.bytes_left - size
    undefined = length == _UNDEFINED
    return tag, start[size : size + 4], left - 8 if undefined else min(length, left), undefined


def _read_description(dataset: FileDataset, keyword: str) -> str | None:
    """A text that no slice is refused for: None where it cannot be read."""
    try:
        value = _read_value(dataset, keyword)
    except PARSE_ERRORS:
        return None
    return None if value is None else str(value)


def _read_value(dataset: FileDataset, keyword: str) -> int | str | None:
    """A value in plain form; ASCII is taken from the raw bytes, which is four times faster."""
    element: Any = dataset.get_item(_TAGS[keyword])
    value = None if element is None else element.value
    if value is None or len(value) == 0:
        return None
    if keyword in _BINARY:
        if len(value) not in (2, 4) and keyword.startswith("PixelPadding"):
            return None  # the image can be read without
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
