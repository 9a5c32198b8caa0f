"""One DICOM file → Hounsfield units, or a named error."""

from kit.dicom.header import NotACTSliceError, PixelError
from kit.dicom.parsing import DicomError, MissingError, UnreadableError
from kit.dicom.pixels import read_hounsfield

__all__ = [
    "DicomError",
    "MissingError",
    "NotACTSliceError",
    "PixelError",
    "UnreadableError",
    "read_hounsfield",
]
