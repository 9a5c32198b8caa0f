"""One DICOM file → its pixels in Hounsfield units; every defect is a named error."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset
from pydicom.encaps import get_frame
from pydicom.uid import (
    ExplicitVRBigEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from kit.dicom.header import NATIVE_SYNTAXES, Header, PixelError, check_header
from kit.dicom.parsing import PARSE_ERRORS, describe_error, parse_file, read_leniently
from kit.files import Reason

_CODED_WITH_SIZE = {*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes}


@read_leniently()
def read_hounsfield(path: str | Path, repair: bool = True) -> np.ndarray:
    """Read one CT slice in Hounsfield units, shape (rows, cols).

    int16 if slope and intercept keep every value a 16-bit integer (as in the competition), else
    float32. MONOCHROME1 concerns the display alone and changes no value. With `repair`, the wrong
    intercept that `has_wrong_intercept` finds is corrected.

    Raises a `DicomError` naming the file and the reason: unreadable, not a CT slice, pixels cut
    short or not decodable, or values that cannot be Hounsfield units.
    """
    dataset, bytes_left = parse_file(path)
    header = check_header(dataset, bytes_left, path)
    stored = _decode_pixels(dataset, header, path)
    slope, intercept = (float(header.values[f"Rescale{name}"]) for name in ("Slope", "Intercept"))
    if repair and has_wrong_intercept(header):
        stored = stored.astype(np.int32) + 1000
        stored[stored >= 4096] -= 4096
        intercept = -1000.0
    return _rescale(stored, slope, intercept)


def has_wrong_intercept(header: Header) -> bool:
    """Whether 12-bit signed data is declared unsigned, as in 123 of the training files.

    The sign is BitsStored 12, PixelRepresentation 0 and an intercept above −100, as measured on
    the training files; none of the stage-2 test files has it.
    """
    values = header.values
    return (
        values["BitsStored"] == 12
        and values["PixelRepresentation"] == 0
        and float(values["RescaleIntercept"]) > -100
    )


def check_pixel_bytes(header: Header) -> Reason | None:
    """Why the file of a header from `read_header` cannot hold all its pixels, or None.

    Known from the file's size alone, and only if the pixels are not compressed.
    """
    values = header.values
    expected = values["Rows"] * values["Columns"] * values["BitsAllocated"] // 8
    if header.syntax not in NATIVE_SYNTAXES or header.pixel_bytes >= expected:
        return None
    return Reason("pixel data is cut short", f"{header.pixel_bytes} of {expected} bytes")


def _decode_pixels(dataset: FileDataset, header: Header, path: str | Path) -> np.ndarray:
    """The stored values, (rows, cols), whole numbers."""
    shape = header.values["Rows"], header.values["Columns"]
    try:
        pixels = dataset.get("PixelData")
        if pixels is None:
            raise PixelError(path, "file holds no pixel data")
        if header.syntax in NATIVE_SYNTAXES:
            reason = check_pixel_bytes(header._replace(pixel_bytes=len(pixels)))
            if reason:
                raise PixelError(path, *reason)
            stored = _view_native(pixels, header)
        else:
            dataset.file_meta.TransferSyntaxUID = header.syntax  # a bare file does not name it
            if header.syntax == RLELossless:
                # The Rust decoder panics on broken data, which no `except` for errors catches.
                dataset.pixel_array_options(decoding_plugin="pydicom")
            found = _find_coded_shape(dataset) if header.syntax in _CODED_WITH_SIZE else shape
            if found == shape:
                stored = dataset.pixel_array
                found = stored.shape
            if found != shape:
                code = "coded image does not have the header's size"
                raise PixelError(path, code, f"it is {found}, the header says {shape}")
    except PixelError:
        raise
    except (*PARSE_ERRORS, OSError) as error:
        raise PixelError(path, "pixels cannot be decoded", describe_error(error)) from error
    return _extend_sign(stored, header.values["BitsStored"], header.values["PixelRepresentation"])


def _view_native(pixels: bytes, header: Header) -> np.ndarray:
    """The stored values of pixels that are not coded, read-only: no copy, unlike `pixel_array`."""
    values = header.values
    order = ">" if header.syntax == ExplicitVRBigEndian else "<"
    kind = "i" if values["PixelRepresentation"] else "u"
    dtype = np.dtype(f"{order}{kind}{values['BitsAllocated'] // 8}")
    shape = values["Rows"], values["Columns"]
    stored = np.frombuffer(pixels, dtype, shape[0] * shape[1]).reshape(shape)
    return stored.astype(dtype.newbyteorder("="), copy=False)


def _find_coded_shape(dataset: FileDataset) -> tuple[int, ...]:
    """(rows, columns) as a JPEG, JPEG-LS or JPEG 2000 stream says; then the components unless 1.

    Decoders believe it: a kilobyte that claims 30,000 × 30,000 would cost minutes and gigabytes.
    """
    stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
    start = stream.find(b"\xff\x4f\xff\x51", 0, 256)  # ISO/IEC 15444-1, A.5.1: the size marker
    if start >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", stream, start + 8)
        (components,) = struct.unpack_from(">H", stream, start + 40)
        return (bottom - top, right - left, *([components] if components != 1 else []))
    position = 2
    while stream[position] == 0xFF:  # ISO/IEC 10918-1, B.2.2; 14495-1: the frame header
        code, length = (
            stream[position + 1],
            int.from_bytes(stream[position + 2 : position + 4], "big"),
        )
        if code == 0xF7 or (0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC)):
            rows, columns, components = struct.unpack_from(">HHB", stream, position + 5)
            return (rows, columns, *([components] if components != 1 else []))
        position += 1 if code == 0xFF else 2 + length
    raise ValueError("the coded image does not state its size")


def _extend_sign(stored: np.ndarray, bits: int, signed: int) -> np.ndarray:
    """Values of `bits` bits; the bits above them do not belong to the value."""
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if stored.min() >= low and stored.max() <= high:
        return stored
    shift = stored.dtype.itemsize * 8 - bits
    return (stored << shift) >> shift


def _rescale(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    if slope == 1 and intercept == int(intercept):
        low, high = int(stored.min()) + int(intercept), int(stored.max()) + int(intercept)
        if low >= -32768 and high <= 32767:
            # 16-bit wrap-around is harmless here: the true result is known to fit.
            with np.errstate(over="ignore"):
                narrow = stored.view(np.int16) if stored.itemsize == 2 else stored.astype(np.int16)
                return narrow + np.int16(int(intercept))
    values = stored * np.float64(slope)
    values += intercept
    return values.astype(np.float32)
