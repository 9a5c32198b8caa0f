"""A NIfTI file in HU → axial slices as DICOM has them: rows to the back, columns to the left."""

from __future__ import annotations

import os
import zlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kit.dicom.checks import check_volume
from kit.dicom.parsing import (
    PARSE_ERRORS,
    DicomError,
    MissingError,
    UnreadableError,
    describe_error,
)
from kit.files import explain_error, file_size, find_container, open_file, split_plane

_LARGEST = 1 << 30  # bytes, unpacked: 512 x 512 x 1000 in 32 bits
_MILLIMETRES = {"meter": 1e3, "micron": 1e-3}  # others: mm, or unknown, which is mm too
_SQUARE = 0.02  # by how much of its length a pixel of an axial slice may be wider than high
_TO_LPS = np.array([-1, -1, 1])  # NIfTI's axes go to the right and the front, DICOM's do not


class Volume(NamedTuple):
    """The slices of a file, feet first: `values` (T, rows, cols) HU, int16 or else float32.

    The rest is as DICOM has it: `positions` (T, 3) of the first pixels in mm, `orientation` (6,),
    `spacing` (rows, columns) in mm; `stated` tells whether the file says how the patient lies.
    """

    values: np.ndarray
    positions: np.ndarray
    orientation: np.ndarray
    spacing: tuple[float, float]
    stated: bool


def read_volume(path: str | Path) -> Volume:
    """Read a NIfTI file, or a member of a zip; the last two files read are kept in memory.

    Raises a `DicomError` naming the file: not readable, not one volume of axial slices, not HU.
    """
    try:
        found = os.stat(find_container(path))
        return _read_version(str(path), found.st_size, found.st_mtime_ns)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | PermissionError)
        raise (MissingError if missing else UnreadableError)(path, *explain_error(error)) from error


def read_plane(path: str | Path) -> np.ndarray:
    """Read one slice, (rows, cols) HU, of a path `scan.nii.gz/12`; they count from 1."""
    file, number = split_plane(path)
    values = read_volume(file).values
    if not 1 <= number <= len(values):
        raise UnreadableError(path, "no such slice in the NIfTI image", f"it has {len(values)}")
    return values[number - 1].copy()


def narrow_values(values: np.ndarray) -> np.ndarray:
    """HU as `read_hounsfield` gives them: int16 where that loses nothing, else float32."""
    fits = values.min() >= -32768 and values.max() <= 32767 and (values == np.round(values)).all()
    return values.astype(np.int16 if fits else np.float32)


@lru_cache(maxsize=2)
def _read_version(path: str, *_: int) -> Volume:
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
        from nibabel.orientations import OrientationError
        from nibabel.spatialimages import HeaderDataError
        from nibabel.wrapstruct import WrapStructError
    except ImportError as error:
        code = "nibabel, which reads NIfTI, is not installed"
        raise UnreadableError(path, code, "pip install nibabel") from error
    content = _read_content(path)
    kind = nibabel.Nifti2Image if content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else None
    try:
        image = (kind or nibabel.Nifti1Image).from_bytes(content)
        _check_shape(path, image, len(content))
        stated = bool(image.header["sform_code"] or image.header["qform_code"])
        return _turn_to_patient(path, nibabel.as_closest_canonical(image), stated)
    except DicomError:
        raise
    except OrientationError as error:
        raise UnreadableError(path, "its axes are not those of a scan") from error
    except (ImageFileError, HeaderDataError, WrapStructError, OSError, *PARSE_ERRORS) as error:
        raise UnreadableError(path, "not a NIfTI image", describe_error(error)) from error


def _read_content(path: str) -> bytes:
    """The bytes of a file, unpacked."""
    with open_file(path) as file:
        if file_size(path, file) > _LARGEST:
            raise UnreadableError(path, "larger than any scan of a head")
        content = file.read()
    if content[:2] != b"\x1f\x8b":
        return content
    parts, left = [], _LARGEST
    while content[:2] == b"\x1f\x8b":  # some programs pack in several members
        inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            parts.append(inflater.decompress(content, left))
        except zlib.error as error:
            raise UnreadableError(path, "its gzip is damaged", str(error)) from error
        left -= len(parts[-1])
        if inflater.unconsumed_tail or left <= 0:
            raise UnreadableError(path, "larger than any scan of a head")
        if not inflater.eof:
            raise UnreadableError(path, "its gzip is cut short")
        content = inflater.unused_data
    return b"".join(parts)


def _check_shape(path: str, image, size: int) -> None:
    """Refuse, before its values are read, what is not one volume of numbers."""
    shape, dtype = image.shape, image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise UnreadableError(path, "values are not Hounsfield units", f"they are {dtype}")
    if len(shape) < 3 or min(shape[:3]) < 1 or any(length != 1 for length in shape[3:]):
        raise UnreadableError(path, "not one volume", f"its shape is {shape}")
    needed = int(image.dataobj.offset) + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if needed > size:
        raise UnreadableError(path, "file is cut short", f"{size} of {needed} bytes")


def _turn_to_patient(path: str, image, stated: bool) -> Volume:
    """The volume of an image whose axes go to the right, the front and the head."""
    placed = image.affine[:3] * _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
    axes, origin = placed[:, :3] * _TO_LPS[:, None], placed[:, 3] * _TO_LPS
    lengths = np.linalg.norm(axes, axis=0)
    if not (np.isfinite(image.affine).all() and (lengths > 0).all()):
        raise UnreadableError(path, "its axes are not those of a scan")
    if abs(lengths[0] - lengths[1]) > _SQUARE * lengths[:2].max():
        detail = f"its pixels would be {lengths[0]:.2f} x {lengths[1]:.2f} mm"
        raise UnreadableError(path, "plane is not axial", detail)
    columns, rows, slices = image.shape[:3]
    values = np.asanyarray(image.dataobj).reshape(columns, rows, slices)
    reason = check_volume(values)
    if reason:
        raise UnreadableError(path, *reason)
    # Columns go to the patient's left and rows to the back: both against NIfTI's axes.
    values = narrow_values(np.ascontiguousarray(values[::-1, ::-1].transpose(2, 1, 0)))
    corner = origin + axes[:, 0] * (columns - 1) + axes[:, 1] * (rows - 1)
    directions = -axes[:, :2] / lengths[:2]
    return Volume(
        values=values,
        positions=corner + np.arange(slices)[:, None] * axes[:, 2],
        orientation=directions.T.reshape(-1),
        spacing=(float(lengths[1]), float(lengths[0])),
        stated=stated,
    )
