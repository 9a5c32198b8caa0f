"""One DICOM file → its pixels in Hounsfield units; every defect is a named error."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset
from pydicom.encaps import generate_fragments, get_frame
from pydicom.uid import (
    ExplicitVRBigEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from kit.dicom.checks import NATIVE_SYNTAXES
from kit.dicom.header import (
    Header,
    PixelError,
    check_header,
    count_pixel_bytes,
)
from kit.dicom.nifti import read_plane
from kit.dicom.parsing import PARSE_ERRORS, describe_error, parse_file, read_leniently
from kit.files import Reason, split_plane

_CODED_WITH_SIZE = {*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes}


# The wrong intercept: 12-bit values of −1000 HU are stored as 3096, air's noise around it.
_WRAP = 4096
_WRAPPED_AIR = _WRAP - 1000
_CORNER = slice(0, 2), slice(-2, None)
_CORNERS = [0, 0, -1, -1], [0, -1, 0, -1]

AIR = -1000  # HU


@read_leniently()
def read_hounsfield(path: str | Path, repair: bool = True) -> np.ndarray:
    """Read one CT slice in Hounsfield units, shape (rows, cols).

    int16 if slope and intercept keep every value a 16-bit integer (as in the competition), else
    float32. MONOCHROME1 concerns the display alone and changes no value. Padding, where a corner
    shows that the image has it, is air: at most −1000. With `repair`, the wrong intercept that
    `has_wrong_intercept` finds is corrected.

    Raises a `DicomError` naming the file and the reason: unreadable, not a CT slice, pixels cut
    short or not decodable, or values that cannot be Hounsfield units. The path `scan.nii.gz/12` is
    the 12th slice of a NIfTI image, which has HU by itself (see `nifti`).
    """
    if split_plane(path)[1]:
        return read_plane(path)
    header, cells, stored = _read_stored(path)
    slope, intercept = _find_rescale(header)
    if repair and may_have_wrong_intercept(header) and _has_wrapped_air(stored):
        stored, intercept = _unwrap(stored), 0.0
    hounsfield = _rescale(stored, slope, intercept)
    padded = _find_padding(header, cells, stored)
    if padded is not None:
        np.minimum(hounsfield, AIR, out=hounsfield, where=padded)
    return hounsfield


def may_have_wrong_intercept(header: Header) -> bool:
    """Whether the header is that of a file with the competition's wrong intercept.

    In 123 of the training files 12-bit signed data are declared unsigned, slope 1, intercept 0 or
    1; none of the stage-2 test files has it. Others' files have such a header and are right.
    """
    values = header.values
    return (
        values["BitsStored"] == 12
        and values["PixelRepresentation"] == 0
        and _find_rescale(header) in ((1, 0), (1, 1))
    )


@read_leniently()
def has_wrong_intercept(path: str | Path) -> bool:
    """Whether a file has the competition's wrong intercept: by its header and its pixels.

    Only signed data explain air at the top of the range in all corners. Raises as
    `read_hounsfield`.
    """
    header, _, stored = _read_stored(path)
    return may_have_wrong_intercept(header) and _has_wrapped_air(stored)


def check_pixel_bytes(header: Header) -> Reason | None:
    """Why the file of a header from `read_header` cannot hold all its pixels, or None.

    Known from the file's size alone, and, where the pixels are compressed, only if there are none.
    """
    if header.pixel_bytes is None:
        return Reason("file holds no pixel data")
    expected = count_pixel_bytes(header.values) if header.syntax in NATIVE_SYNTAXES else 1
    if header.pixel_bytes >= expected:
        return None
    code = "pixel data is cut short, or coded" if header.itemized else "pixel data is cut short"
    return Reason(code, f"{max(0, header.pixel_bytes)} of {expected} bytes")


def _has_wrapped_air(stored: np.ndarray) -> bool:
    """Whether the corners, and some of the image, hold what can only be air, as a negative value.

    It is −1000 ± 200 HU; a corner may also hold padding below that, down to 12 bits' least.
    """
    corners = stored[_CORNERS]
    in_corners = corners.min() >= _WRAP // 2 and corners.max() <= _WRAPPED_AIR + 200
    return bool(
        in_corners and (np.abs(stored.astype(np.int32) - _WRAPPED_AIR) <= 200).mean() > 0.02
    )


def _unwrap(stored: np.ndarray) -> np.ndarray:
    """Wrapped values → Hounsfield units.

    In the competition's files no value is below −1000, and metal goes up to 3095. Where corners or
    the air's noise are below, the values are signed ones of 12 bits.
    """
    below = (stored >= _WRAPPED_AIR - 200) & (stored < _WRAPPED_AIR)
    signed = stored[_CORNERS].min() < _WRAPPED_AIR or below.mean() > 0.01
    stored = stored.astype(np.int32)
    return np.where(stored >= (_WRAP // 2 if signed else _WRAPPED_AIR), stored - _WRAP, stored)


def _read_stored(path: str | Path) -> tuple[Header, np.ndarray, np.ndarray]:
    """A file's header, its pixels as they are stored, and the values in them; both (rows, cols)."""
    parsed = parse_file(path)
    header = check_header(parsed, path)
    cells = _decode_pixels(parsed.dataset, header, path)
    return header, cells, _extract_values(cells, header, path)


def _decode_pixels(dataset: FileDataset, header: Header, path: str | Path) -> np.ndarray:
    """The pixels as they are stored, (rows, cols), whole numbers."""
    shape = header.values["Rows"], header.values["Columns"]
    reason = check_pixel_bytes(header)
    if reason:
        raise PixelError(path, *reason)
    try:
        if header.syntax in NATIVE_SYNTAXES:
            return _view_native(dataset.PixelData, header, path)
        dataset.file_meta.TransferSyntaxUID = header.syntax  # a bare file does not name it
        if header.syntax == RLELossless:
            # The Rust decoder panics on broken data, which no `except` for errors catches.
            dataset.pixel_array_options(decoding_plugin="pydicom")
        found = _find_coded_shape(dataset) if header.syntax in _CODED_WITH_SIZE else shape
        if found == shape:
            stored = dataset.pixel_array
            found = stored.shape
    except PixelError:
        raise
    except (*PARSE_ERRORS, OSError) as error:
        raise PixelError(path, "pixels cannot be decoded", describe_error(error)) from error
    if found != shape:
        code = "coded image does not have the header's size"
        raise PixelError(path, code, f"it is {found}, the header says {shape}")
    return stored


def _view_native(pixels: bytes, header: Header, path: str | Path) -> np.ndarray:
    """Pixels that are not coded, read-only: no copy, unlike `pixel_array`."""
    values = header.values
    order = ">" if header.syntax == ExplicitVRBigEndian else "<"
    if header.itemized:
        pixels = _join_items(pixels, order, header, path)
    kind = "i" if values["PixelRepresentation"] else "u"
    dtype = np.dtype(f"{order}{kind}{values['BitsAllocated'] // 8}")
    shape = values["Rows"], values["Columns"]
    stored = np.frombuffer(pixels, dtype, shape[0] * shape[1]).reshape(shape)
    return stored.astype(dtype.newbyteorder("="), copy=False)


def _join_items(pixels: bytes, order: str, header: Header, path: str | Path) -> bytes:
    """Pixels that are not coded and yet lie in items, as coded ones do."""
    table, *frames = generate_fragments(pixels, endianness=order)
    # One frame's offset table is empty or one number; without a table the first item is pixels.
    found = b"".join(frames if len(table) in (0, 4) else [table, *frames])
    expected = count_pixel_bytes(header.values)
    if len(found) != expected:
        code = "items of the pixel data do not have the header's size"
        raise PixelError(path, code, f"{len(found)} of {expected} bytes")
    return found


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


def _extract_values(cells: np.ndarray, header: Header, path: str | Path) -> np.ndarray:
    """The values in the cells: the bits stored up to the high bit; other bits are not theirs."""
    bits, signed = header.values["BitsStored"], header.values["PixelRepresentation"]
    high_bit = header.values["HighBit"]
    shift = 0 if high_bit is None else high_bit + 1 - bits
    width = cells.itemsize * 8
    if bits == width and not shift and (cells.dtype.kind == "i") == bool(signed):
        return cells
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    fits = cells.min() >= low and cells.max() <= high
    if fits and not shift:
        return cells
    if bits <= 8 and not fits and not shift:  # fewer than HU need, and no scanner's overlay
        raise PixelError(path, "values do not fit into the bits stored", f"BitsStored is {bits}")
    if shift and fits and (cells & ((1 << shift) - 1)).any():
        raise PixelError(path, "values do not lie where the high bit says", f"it is {high_bit}")
    return (cells << (width - bits - shift)) >> (width - bits)


def _find_padding(header: Header, cells: np.ndarray, stored: np.ndarray) -> np.ndarray | None:
    """Which pixels are padding, (rows, cols) bool; None where no corner is, or all is below air.

    A value that stands in no corner is no padding of this image: it may be tissue's.
    """
    value, limit = (header.values[f"PixelPadding{name}"] for name in ("Value", "RangeLimit"))
    if value is None:
        return None
    # Known as 16 or 32 bits without a sign: as the pixels are.
    written = np.array([value, value if limit is None else limit], np.uint32)
    ends = written.astype(cells.dtype)
    if ((written >> 16 != 0) & (ends.astype(np.uint32) != written)).any():  # of no pixel
        return None
    low, high = ends.min(), ends.max()
    slope, intercept = _find_rescale(header)
    if cells is stored and high * slope + intercept <= AIR:  # as most scanners write it
        return None
    # A value of more bits than are stored is in the cells alone.
    images = (cells,) if cells is stored else (cells, stored)
    if not any(_fills_corner(image, low, high) for image in images):
        return None
    padded = [(low <= image) & (image <= high) if low < high else image == low for image in images]
    return padded[0] if len(padded) == 1 else padded[0] | padded[1]


def _fills_corner(image: np.ndarray, low: np.integer, high: np.integer) -> bool:
    """Whether all of a corner's 2 × 2 pixels are within the two; one of them may be noise."""
    blocks = (image[rows, columns] for rows in _CORNER for columns in _CORNER)
    return any(low <= block.min() and block.max() <= high for block in blocks)


def _find_rescale(header: Header) -> tuple[float, float]:
    return float(header.values["RescaleSlope"]), float(header.values["RescaleIntercept"])


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
