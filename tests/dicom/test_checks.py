"""What is not one CT slice in Hounsfield units is refused, saying what is there instead."""

import numpy as np
import pydicom
import pytest
from dicom_files import reason_of, replace_once, write_slice
from pydicom.dataset import Dataset

from kit.dicom import read_hounsfield
from kit.dicom.header import NotACTSliceError, read_header


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Modality": "MR"}, "not a CT image: Modality is MR"),
        ({"Modality": "ct"}, "not a CT image: Modality is ct"),
        ({"Modality": None}, "Modality is missing"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "Secondary Capture Image Storage"),
        ({"ImageType": ["DERIVED", "PRIMARY", "LOCALIZER"]}, "ImageType says LOCALIZER"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "SCOUT 1"]}, "ImageType says SCOUT"),
        ({"SeriesDescription": "Topogram 0.6 T80s"}, "SeriesDescription says TOPOGRAM"),
        (
            {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
            "a colour image: ",
        ),
        ({"PhotometricInterpretation": "monochrome2"}, "PhotometricInterpretation is monochrome2"),
        ({"PhotometricInterpretation": "YBR_FULL"}, "PhotometricInterpretation is YBR_FULL"),
        ({"NumberOfFrames": 2}, "NumberOfFrames is 2"),
        ({"Rows": None}, "Rows is missing"),
        ({"Rows": 0}, "0 x 8 pixels"),
        ({"Rows": 65535, "Columns": 65535}, "65535 x 65535 pixels"),
        ({"BitsAllocated": 8, "BitsStored": 8}, "8 bits stored in 8"),
        ({"BitsStored": 17}, "17 bits stored in 16"),
        ({"BitsStored": 0, "HighBit": 0}, "0 bits stored in 16"),
        ({"BitsStored": 12, "HighBit": 10}, "HighBit is 10 for 12 bits stored in 16"),
        ({"BitsStored": 12, "HighBit": 16}, "HighBit is 16 for 12 bits stored in 16"),
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
        ({"RescaleSlope": ["1", "1"]}, "RescaleSlope is 1\\1"),
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


@pytest.mark.parametrize(
    ("tags", "word"),
    [
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "MIP"]}, "ImageType says MIP"),
        ({"SeriesDescription": "AX MIP 5mm"}, "SeriesDescription says MIP"),
        ({"SeriesDescription": "3D VRT"}, "SeriesDescription says VRT"),
    ],
)
def test_a_projection_is_named(tmp_path, tags, word):
    path = write_slice(tmp_path / "a.dcm", **tags)
    assert reason_of(path, NotACTSliceError) == f"a projection, not a slice: {word}"
    path = write_slice(path, SeriesDescription="MIP", ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    assert read_hounsfield(path).shape == (8, 8)


@pytest.mark.parametrize(
    ("tags", "word"),
    [
        ({"ImageType": ["DERIVED", "SECONDARY", "PERFUSION", "CBF"]}, "CBF"),
        ({"ImageType": ["DERIVED", "SECONDARY", "OTHER", "MTT_MAP"]}, "MAP"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MATERIAL_DENSITY"]}, "DENSITY"),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "Z_EFF"]}, "Z_EFF"),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "ELECTRON_DENSITY"]}, "DENSITY"),
        ({"SeriesDescription": "Perfusion 10.0 Tmax"}, "TMAX"),
        ({"SeriesDescription": "rCBV colour"}, "RCBV"),
    ],
)
def test_a_map_of_perfusion_or_material_is_named(tmp_path, tags, word):
    path = write_slice(tmp_path / "a.dcm", RescaleSlope=0.1, **tags)
    (keyword,) = tags
    reason = f"a parametric map, not Hounsfield units: {keyword} says {word}"
    assert reason_of(path, NotACTSliceError) == reason


@pytest.mark.parametrize(
    ("tags", "word"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "LOCALIZER"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "PILOT"]}, "PILOT"),
        ({"SeriesDescription": "Topogram 0.6"}, "TOPOGRAM"),
    ],
)
def test_a_scout_is_named(tmp_path, tags, word):
    path = write_slice(tmp_path / "a.dcm", **tags)
    *_, keyword = tags
    reason = f"a localizer, not an axial slice: {keyword} says {word}"
    assert reason_of(path, NotACTSliceError) == reason


@pytest.mark.parametrize(
    "tags",
    [
        {"SeriesDescription": "HEAD W/O CONTRAST MATERIAL"},
        {"SeriesDescription": "Perfusion 5.0 source"},
        {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "VNC"]},  # virtual non-contrast: in HU
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "PERFUSION"]},  # a slice of the series
        {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "SeriesDescription": "for CBF map"},
        {"SeriesDescription": "HEAD PILOT STUDY"},
    ],
)
def test_slices_that_are_no_map_are_read(tmp_path, tags):
    assert read_header(write_slice(tmp_path / "a.dcm", **tags)).values["Modality"] == "CT"


@pytest.mark.parametrize(
    "unit", ["HU", "hu", "US", "Hounsfield", "Houndsfield Unit", "HOUNSFIELD UNITS"]
)
def test_every_spelling_of_the_unit_is_believed(tmp_path, unit):
    path = write_slice(tmp_path / "a.dcm", RescaleType=unit)
    assert read_header(path).values["RescaleType"] == unit


def test_a_decimal_comma_is_shown(tmp_path):
    path = write_slice(tmp_path / "a.dcm", RescaleIntercept="-1024.0")
    reason = "values are not Hounsfield units: RescaleIntercept is -1024,0"
    assert reason_of(replace_once(path, b"-1024.0", b"-1024,0")) == reason


def test_floating_point_pixels_and_a_table_of_values_are_named(tmp_path):
    path = write_slice(tmp_path / "a.dcm", BitsStored=None, HighBit=None)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.FloatPixelData = np.zeros((8, 8), np.float32).tobytes()
    dataset.save_as(path)
    reason = "pixels are floating-point numbers: they are FloatPixelData"
    assert reason_of(path) == reason
    with pytest.raises(NotACTSliceError, match=reason):
        read_header(path)
    path = write_slice(tmp_path / "b.dcm", RescaleSlope=None, ModalityLUTSequence=[Dataset()])
    assert reason_of(path).endswith("RescaleSlope is missing; there is a ModalityLUTSequence")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-80,5\\-102\\30", "-80,5\\-102\\30"),
        ("-80\\nan\\30", "-80\\…\\30"),
        ("1\\0\\0\\0\\1\\0\\", "1\\0\\0\\0\\1\\0\\"),
        ("Yamada", "not a number"),
        ("19410203", "beyond 100000"),
        ("Yamada\\19410203\\4", "…\\…\\4"),
    ],
)
def test_numbers_are_shown_and_what_may_be_a_name_or_date_is_not(text, shown):
    from kit.dicom.checks import show_numbers

    assert show_numbers(text) == shown
