"""What a header's values must be for a file to be one CT slice in HU, and the reason if not."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
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

from kit.dicom.parsing import MAX_PIXELS, parse_numbers
from kit.files import Reason

NATIVE_SYNTAXES = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian}
FLOAT_PIXELS: dict[int, str] = {
    Tag(keyword): keyword for keyword in ("FloatPixelData", "DoubleFloatPixelData")
}

LEAST_AIR = -200  # HU; every slice of a head has air below
_NOT_HOUNSFIELD = "values are not Hounsfield units"
_DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"

# Texts of a header by which nothing but the table of series goes.
DESCRIPTIONS = ("StudyDescription", "BodyPartExamined", "ConvolutionKernel", "ContrastBolusAgent")

# Words of ImageType and SeriesDescription by which scanners and workstations name what is no slice
# in Hounsfield units. Others of ImageType, in a description, may tell of slices that are.
_SCOUTS = {
    "LOCALIZER", "LOCALISER", "SCOUT", "TOPOGRAM", "TOPO", "SURVIEW", "SCANOGRAM",
}  # fmt: skip
_MAPS = {
    "CBF", "RCBF", "CBV", "RCBV", "MTT", "RMTT", "TTP", "TTD", "TMAX", "PBV", "PERMEABILITY",
    "ZEFF", "Z_EFF", "RHO_Z", "MAP", "MAPS",
}  # fmt: skip
_PROJECTIONS = {"MIP", "MINIP", "MAXIP", "VRT"}
_MAP_TYPES = {
    "PERFUSION", "PARAMETRIC", "MATERIAL", "IODINE", "WATER", "CALCIUM", "UPTAKE", "FRACTION",
    "DENSITY", "ATOMIC", "SUBTRACTION", *_MAPS,
}  # fmt: skip

_CODE = re.compile(r"[A-Z]{2}|[A-Z]+(_[A-Z0-9]+)+|(?i:[A-Z]{2}|MONOCHROME\d?|RGB|MG/?(ML|CC))")
_HOUNSFIELD = re.compile(r"HU|US|HOUN[DS]*FIELD([ _]?UNITS?)?")  # US: unspecified, HU in a CT slice
_NUMBER = re.compile(r"([+-]?\d{1,5}([.,]\d{0,12})?([Ee][+-]?\d{1,3})?)?")


def show_numbers(text: str) -> str:
    """Numbers as they stand in a header, or that they are none.

    Others are not quoted: in a broken header they may be the patient's name or a date.
    """
    parts = [part if _NUMBER.fullmatch(part.strip()) else "…" for part in text.split("\\")]
    if any(part != "…" for part in parts[:9]):
        return "\\".join(parts[:9])
    numbers = parse_numbers(text)
    return "beyond 100000" if numbers and max(map(abs, numbers)) >= 1e5 else "not a number"


def check_kind(values: dict[str, Any]) -> Reason | None:
    """Why this is not one grayscale image of the CT's axial slices, or None."""
    sop_class = values["SOPClassUID"]  # the competition's own files carry none
    if values["Modality"] is None:
        return Reason("Modality is missing")
    if values["Modality"] != "CT":
        known = f" ({_name_uid(sop_class)})" if sop_class else ""
        return Reason("not a CT image", f"Modality is {_quote(values['Modality'])}{known}")
    if sop_class and sop_class not in (CTImageStorage, LegacyConvertedEnhancedCTImageStorage):
        return Reason("not a CT image", f"SOPClassUID is {_name_uid(sop_class)}")
    if reason := _check_words(values):
        return reason
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
        return Reason("not one slice in one file", f"NumberOfFrames is {show_numbers(frames)}")
    return None


def _check_words(values: dict[str, Any]) -> Reason | None:
    """Why the words that tell the kind of an image say that it is no slice in HU, or None."""
    as_measured = (values["ImageType"] or "").upper().split("\\")[:2] == ["ORIGINAL", "PRIMARY"]
    for keyword, scouts, maps in (
        ("ImageType", {*_SCOUTS, "PILOT"}, _MAP_TYPES),
        ("SeriesDescription", _SCOUTS, _MAPS),  # a pilot study's slices are slices
    ):
        text = (values[keyword] or "").upper()
        words = {*text.split("\\"), *re.findall(r"[A-Z]+", text)}
        if found := words & scouts:
            return Reason("a localizer, not an axial slice", f"{keyword} says {min(found)}")
        if (found := words & maps) and not as_measured:
            return Reason("a parametric map, not Hounsfield units", f"{keyword} says {min(found)}")
        if (found := words & _PROJECTIONS) and not as_measured:
            return Reason("a projection, not a slice", f"{keyword} says {min(found)}")
    return None


def check_size(values: dict[str, Any], tag: int) -> Reason | None:
    """Why pixels in the element of this tag cannot be the values of one slice, or None."""
    if tag in FLOAT_PIXELS:
        return Reason("pixels are floating-point numbers", f"they are {FLOAT_PIXELS[tag]}")
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"):
        if values[keyword] is None:
            return Reason(f"{keyword} is missing")
    rows, columns = values["Rows"], values["Columns"]
    if rows < 1 or columns < 1 or rows * columns > MAX_PIXELS:
        return Reason("image size is not that of a CT slice", f"{rows} x {columns} pixels")
    allocated, stored = values["BitsAllocated"], values["BitsStored"]
    if not (allocated in (16, 32) and 0 < stored <= allocated):
        return Reason("pixels cannot hold Hounsfield units", f"{stored} bits stored in {allocated}")
    high = values["HighBit"]
    if high is not None and not stored <= high + 1 <= allocated:
        detail = f"HighBit is {high} for {stored} bits stored in {allocated}"
        return Reason("HighBit does not fit the bits stored", detail)
    signed = values["PixelRepresentation"]
    if signed not in (0, 1):
        return Reason("PixelRepresentation is neither 0 nor 1", f"it is {signed}")
    return None


def check_units(values: dict[str, Any], has_table: bool) -> Reason | None:
    """`has_table`: whether a table of values stands in the place of slope and intercept."""
    # Steps of 0.01 HU are below all noise; of 16 HU, 12 bits span what 16 bits of 1 HU do.
    for keyword, low, high in (("RescaleSlope", 0.01, 16), ("RescaleIntercept", -32768, 32768)):
        text = values[keyword]
        if text is None:
            table = "; there is a ModalityLUTSequence" if has_table else ""
            detail = f"{keyword} is missing{table}"
            return Reason("values are not known to be Hounsfield units", detail)
        numbers = parse_numbers(text)
        if numbers is None or len(numbers) != 1 or not low <= numbers[0] <= high:
            return Reason(_NOT_HOUNSFIELD, f"{keyword} is {show_numbers(text)}")
    kind = values["RescaleType"]
    if kind and not _HOUNSFIELD.fullmatch(kind.upper()):
        return Reason(_NOT_HOUNSFIELD, f"RescaleType is {_quote(kind)}")
    return None


def check_volume(values: np.ndarray) -> Reason | None:
    """Why these values, of a whole scan without a DICOM header, cannot be HU of a head, or None."""
    if not np.isfinite(values).all():
        return Reason(_NOT_HOUNSFIELD, "some are not finite")
    low, high = values.min(), values.max()
    if low < -32768 or high > 32767:
        return Reason(_NOT_HOUNSFIELD, f"they go from {low:g} to {high:g}")
    if low >= LEAST_AIR:
        return Reason(_NOT_HOUNSFIELD, f"none is below {LEAST_AIR}, as air is")
    return None


def check_compression(syntax: UID) -> Reason | None:
    if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
        return Reason("compression does not keep Hounsfield units", syntax.name)
    if syntax in NATIVE_SYNTAXES:
        return None
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return Reason("there is no decoder for its compression", _name_uid(syntax))
    if not decoder.is_available:
        return Reason("a decoder is not installed", f"{syntax.name} needs {_DECODERS}")
    return None


def _quote(text: str) -> str:
    """A text of the form of a DICOM code, such as MR or YBR_FULL.

    Others are not quoted: in a broken header they may be the patient's name or a date.
    """
    return text if _CODE.fullmatch(text) else "another"


def _name_uid(uid: str) -> str:
    name = UID(uid).name
    return name if name != uid else "an unknown UID"
