"""DICOM files to order, for the tests of what reads them."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian

SERIES = {"StudyInstanceUID": "1.2.1", "SeriesInstanceUID": "1.2.1.1", "PatientID": "P1"}


def write_slice(path: Path, stored=None, *, syntax=ExplicitVRLittleEndian, bare=False, **tags):
    """Write one CT slice of the stored values `stored` (rows, cols) and return its path.

    `tags` are set over the usual ones, and left out where None. `bare` leaves out the preamble and
    the file meta.
    """
    stored = np.zeros((8, 8), np.int16) if stored is None else np.asarray(stored)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = f"1.2.1.1.{abs(hash(str(path)))}"
    dataset.Modality = "CT"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OW"
    for keyword, value in {**SERIES, **tags}.items():
        if value is None:
            dataset.pop(keyword, None)
        else:
            setattr(dataset, keyword, value)
    dataset.HighBit = dataset.BitsStored - 1
    encoding = {"implicit_vr": syntax.is_implicit_VR, "little_endian": syntax.is_little_endian}
    path.parent.mkdir(parents=True, exist_ok=True)
    if bare:
        dataset.save_as(path, enforce_file_format=False, **encoding)
    else:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3")
        dataset.save_as(path, enforce_file_format=True)
    return path


def replace_once(path: Path, old: bytes, new: bytes) -> Path:
    """Replace the one place where `old` is in a file by as many other bytes."""
    content = path.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    return path


def read_raw(path: Path) -> np.ndarray:
    """The stored values of an uncompressed little-endian file, straight from its bytes."""
    dataset = pydicom.dcmread(path)
    kind = "<i2" if dataset.PixelRepresentation else "<u2"
    return np.frombuffer(dataset.PixelData, kind).reshape(dataset.Rows, dataset.Columns)
