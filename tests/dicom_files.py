"""DICOM files to order, for the tests of what reads them."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK
from conftest import shared
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian

from kit.dicom import DicomError, read_hounsfield

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
    if "HighBit" not in tags:
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


AIR = np.full((8, 8), -1000, np.int16)
AXIAL, CORONAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]


def write_series(folder, name, count=12, spacing=5.0, plane=AXIAL, stored=AIR, **tags):
    """A series of the study 1.2.1 of P1, as a scanner sends it; `stored` may take the number."""
    along = np.cross(plane[:3], plane[3:])
    for number in range(count):
        own = {
            "SOPInstanceUID": f"1.2.{name}.{number}",
            "SeriesInstanceUID": f"1.2.{name}",
            "SeriesNumber": int(name),
            "ImageOrientationPatient": plane,
            "ImagePositionPatient": list(np.round(along * spacing * number, 3)),
            "InstanceNumber": number + 1,
        }
        image = stored(number) if callable(stored) else stored
        write_slice(folder / name / f"{number}.dcm", image, **{**own, **tags})


def write_nifti(folder: Path, path: Path) -> None:
    """Write the one series in a folder as NIfTI, by SimpleITK."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    SimpleITK.WriteImage(reader.Execute(), str(path))


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


def reasons(skipped: pd.DataFrame) -> dict[str, str]:
    return {os.path.basename(row.path): row.reason for row in skipped.itertuples()}


def write_stack(folder, count=3, **tags):
    """A series of `count` files 5 mm apart, their InstanceNumbers falling from feet to head."""
    for z in range(count):
        place = {"ImagePositionPatient": [0, 0, 5 * z], "InstanceNumber": 9 - z, **tags}
        write_slice(folder / f"{z}.dcm", SOPInstanceUID=f"1.{z}", **place)


def write_cut_short(path, **tags):
    write_slice(path, **tags)
    path.write_bytes(path.read_bytes()[:-1])


def find_places(skipped: pd.DataFrame) -> dict[str, tuple]:
    """(series, position) of the skipped files; None where one is not known."""
    known = skipped.astype(object).where(skipped.notna(), None)
    return {os.path.basename(row.path): (row.series, row.position) for row in known.itertuples()}


LOSSLESS = {
    "implicit": "LittleEndianImplicitTransferSyntax_1.2.840.10008.1.2",
    "explicit": "LittleEndianExplicitTransferSyntax_1.2.840.10008.1.2.1",
    "big endian": "BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2",
    "deflated": "DeflatedExplicitVRLittleEndianTransferSyntax_1.2.840.10008.1.2.1.99",
    "RLE": "RLELosslessTransferSyntax_1.2.840.10008.1.2.5",
    "JPEG .57": "JPEGProcess14TransferSyntax_1.2.840.10008.1.2.4.57",
    "JPEG .70": "JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70",
    "JPEG-LS .80": "JPEGLSLosslessTransferSyntax_1.2.840.10008.1.2.4.80",
    "JPEG 2000 .90": "JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90",
}


def encoded(name: str):
    return shared(f"data/cornerstone3D/CTImage.dcm_{name}.dcm")


def reason_of(path, error=DicomError, **options) -> str:
    with pytest.raises(error) as caught:
        read_hounsfield(path, **options)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    return caught.value.reason
