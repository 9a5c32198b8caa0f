"""What is not one CT slice in Hounsfield units is refused by its header, with the reason."""

import subprocess
import sys

import pydicom
import pytest
from conftest import ROOT, shared
from dicom_files import LOSSLESS, encoded, reason_of, replace_once, write_slice

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


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Modality": "MR"}, "not a CT image: Modality is MR"),
        ({"Modality": None}, "Modality is missing"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "Secondary Capture Image Storage"),
        ({"ImageType": ["DERIVED", "PRIMARY", "LOCALIZER"]}, "ImageType says LOCALIZER"),
        (
            {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
            "a colour image: ",
        ),
        ({"PhotometricInterpretation": "YBR_FULL"}, "PhotometricInterpretation is YBR_FULL"),
        ({"NumberOfFrames": 2}, "NumberOfFrames is 2"),
        ({"Rows": None}, "Rows is missing"),
        ({"Rows": 0}, "0 x 8 pixels"),
        ({"Rows": 65535, "Columns": 65535}, "65535 x 65535 pixels"),
        ({"BitsAllocated": 8, "BitsStored": 8}, "8 bits stored in 8"),
        ({"BitsStored": 17}, "17 bits stored in 16"),
        ({"PixelRepresentation": 7}, "PixelRepresentation is neither 0 nor 1: it is 7"),
        ({"RescaleSlope": None}, "be Hounsfield units: RescaleSlope is missing"),
        (
            {"RescaleIntercept": None},
            "be Hounsfield units: RescaleIntercept is missing",
        ),
        ({"RescaleSlope": 0}, "not Hounsfield units: RescaleSlope is 0"),
        ({"RescaleSlope": -1}, "not Hounsfield units: RescaleSlope is -1"),
        ({"RescaleSlope": 17}, "not Hounsfield units: RescaleSlope is 17"),
        ({"RescaleSlope": "1e-30"}, "not Hounsfield units: RescaleSlope is 1e-30"),
        ({"RescaleSlope": "19410203"}, "RescaleSlope is beyond 100000"),
        ({"RescaleSlope": ["1", "1"]}, "RescaleSlope is not a number"),
        ({"RescaleIntercept": 40000}, "not Hounsfield units: RescaleIntercept is 40000"),
        ({"RescaleType": "Z_EFF"}, "not Hounsfield units: RescaleType is Z_EFF"),
        ({"RescaleType": "OD"}, "not Hounsfield units: RescaleType is OD"),
        ({"RescaleType": "1941"}, "not Hounsfield units: RescaleType is another"),
        ({"Modality": "YAMADA TARO"}, "not a CT image: Modality is another"),
        ({"PhotometricInterpretation": "YAMADA"}, "PhotometricInterpretation is another"),
        ({"SOPClassUID": "19410203"}, "not a CT image: SOPClassUID is an unknown UID"),
        ({"NumberOfFrames": "19410203"}, "NumberOfFrames is beyond 100000"),
        ({"PixelData": None}, "holds no pixel data"),
        ({"PixelData": bytes(126)}, "pixel data is cut short: 126 of 128 bytes"),
    ],
)
def test_a_header_that_is_no_ct_slice_is_refused_with_its_reason(tmp_path, tags, reason):
    path = write_slice(tmp_path / "a.dcm", **tags)
    assert reason in reason_of(path)


@pytest.mark.parametrize("number", [b"nan   ", b"inf   ", b"1e+09 ", b"1,0   ", b"Yamada"])
@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_rescaling_by_what_is_no_number_is_refused_without_quoting_it(tmp_path, keyword, number):
    path = write_slice(tmp_path / "a.dcm", **{keyword: "7.7777"})
    reason = reason_of(replace_once(path, b"7.7777", number), NotACTSliceError)
    assert reason.startswith(f"values are not Hounsfield units: {keyword} is ")
    assert "nan" not in reason
    assert "Yamada" not in reason


def test_a_patient_id_in_japanese_is_read_in_its_character_set(tmp_path):
    for charset, name in (("ISO_IR 192", "山田太郎"), (["", "ISO 2022 IR 87"], "山田")):
        path = write_slice(tmp_path / "a.dcm", SpecificCharacterSet=charset, PatientID=name)
        assert read_header(path).values["PatientID"] == name


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
