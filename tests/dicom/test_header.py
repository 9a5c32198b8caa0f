"""What is not one CT slice in Hounsfield units is refused by its header, with the reason."""

import subprocess
import sys

import numpy as np
import pydicom
import pytest
from conftest import ROOT, shared
from dicom_files import LOSSLESS, encoded, reason_of, write_slice
from pydicom.uid import ImplicitVRLittleEndian

from kit.dicom import header, read_hounsfield
from kit.dicom.header import NotACTSliceError, read_header


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "JPEGProcess1TransferSyntax_1.2.840.10008.1.2.4.50",
            "8 bits stored in 8",
        ),
        ("JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51", "does not keep Hounsfield units"),
        (
            "JPEGProcess6_8TransferSyntax_1.2.840.10008.1.2.4.53",
            "no decoder for its compression: JPEG S",
        ),
        (
            "JPEGProcess10_12TransferSyntax_1.2.840.10008.1.2.4.55",
            "no decoder for its compression: JPEG F",
        ),
    ],
)
def test_encodings_that_cannot_be_believed_are_refused_by_the_header_already(name, reason):
    assert reason in reason_of(encoded(name), NotACTSliceError)
    with pytest.raises(NotACTSliceError, match=reason):
        read_header(encoded(name))


def test_a_perfusion_map_of_two_frames_is_not_one_slice():
    files = sorted(shared("data/dicomParser").glob("CT0012.*.dcm"))
    assert len(files) == 10
    for file in files:
        assert "Enhanced CT Image Storage" in reason_of(file, NotACTSliceError)


def test_a_patient_id_in_japanese_is_read_in_its_character_set(tmp_path):
    for charset, name in (("ISO_IR 192", "山田太郎"), (["", "ISO 2022 IR 87"], "山田")):
        path = write_slice(tmp_path / "a.dcm", SpecificCharacterSet=charset, PatientID=name)
        assert read_header(path).values["PatientID"] == name


def test_a_length_that_looks_like_letters_is_one_in_implicit_vr(tmp_path):
    """205 × 205 × 2 = 0x14852, which is `RH` and two bytes more."""
    stored = np.arange(205 * 205, dtype=np.int16).reshape(205, 205)
    path = write_slice(tmp_path / "a.dcm", stored, syntax=ImplicitVRLittleEndian)
    assert path.read_bytes().count(b"\xe0\x7f\x10\0RH\1\0") == 1
    assert read_header(path).pixel_bytes == 84050
    np.testing.assert_array_equal(read_hounsfield(path), stored)


def test_an_error_of_the_kits_own_is_no_fault_of_the_file(tmp_path, monkeypatch):
    path = write_slice(tmp_path / "a.dcm")

    def fail(parsed, elements):
        raise TypeError("of our own")

    monkeypatch.setattr(header, "_find_pixels", fail)
    with pytest.raises(TypeError, match="of our own"):
        read_header(path)


def test_header_values_are_those_that_pydicom_gives():
    for path in ("dcm_qa_ct/GE/14.dcm", "dcm_qa_ct/Philips/S21570/S2010/I10", "monai/7106"):
        path = shared(f"data/{path}")
        values, expected = read_header(path).values, pydicom.dcmread(path)
        for keyword in ("Rows", "Columns", "BitsStored", "PixelRepresentation"):
            assert values[keyword] == expected[keyword].value, keyword
        for keyword in ("PatientID", "SOPInstanceUID", "SeriesInstanceUID", "Modality"):
            assert values[keyword] == str(expected[keyword].value), keyword
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            found = [float(number) for number in values[keyword].split("\\")]
            assert found == list(expected[keyword].value), keyword
        assert float(values["RescaleIntercept"]) == expected.RescaleIntercept


MISSING_DECODERS = """
import sys
for name in ("pylibjpeg", "openjpeg", "libjpeg", "rle", "gdcm", "jpeg_ls", "PIL"):
    sys.modules[name] = None
from kit.dicom import DicomError, read_hounsfield
for path in sys.argv[1:]:
    try:
        print(read_hounsfield(path).max())
    except DicomError as error:
        print(error.reason)
"""


def test_a_missing_decoder_is_named_with_what_to_install():
    names = [LOSSLESS[name] for name in ("JPEG 2000 .90", "JPEG-LS .80", "JPEG .70", "RLE")]
    paths = [str(encoded(name)) for name in names]
    done = subprocess.run(
        [sys.executable, "-c", MISSING_DECODERS, *paths],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    *missing, rle = done.stdout.splitlines()
    assert rle == "1378"  # pydicom's own
    assert [reason.split(" needs ")[0].split(": ")[1] for reason in missing] == [
        "JPEG 2000 Image Compression (Lossless Only)",
        "JPEG-LS Lossless Image Compression",
        "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])",
    ]
    for reason in missing:
        assert reason.startswith("a decoder is not installed: ")
        assert reason.endswith("pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg")
