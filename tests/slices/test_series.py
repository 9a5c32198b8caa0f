"""The table of series: what is unusual about each, and which stands for its study."""

import pydicom
import pytest
from dicom_files import AIR, CORONAL, SAGITTAL, write_series, write_slice

from kit.slices import index_slices
from kit.slices.series import choose_series, describe_series


def describe(folder):
    return describe_series(*index_slices(folder, 1)).set_index("SeriesInstanceUID")


def test_a_series_is_described_by_its_headers_and_its_positions(tmp_path):
    told = {
        "SeriesDescription": "HEAD 5mm",
        "BodyPartExamined": "HEAD",
        "ConvolutionKernel": ["H30s", "3"],
        "SliceThickness": "4.80",
    }
    write_series(tmp_path, "1", **told)
    row = describe(tmp_path).loc["1.2.1"]
    assert row.drop("warnings").to_dict() == {
        "PatientID": "P1",
        "StudyInstanceUID": "1.2.1",
        "SeriesDescription": "HEAD 5mm",
        "plane": "axial",
        "ConvolutionKernel": "H30s\\3",
        "SliceThickness": 4.8,
        "spacing": 5.0,
        "ContrastBolusAgent": None,
        "BodyPartExamined": "HEAD",
        "slices": 12,
        "left_out": 0,
        "series": "P1/1.2.1/1.2.1",
    }
    assert row["warnings"] == ""


WARNED = {
    "contrast": [
        {"ContrastBolusAgent": "OMNIPAQUE"},
        {"SeriesDescription": "Head C+"},
        {"SeriesDescription": "CT POST CONTRAST"},
        {"SeriesDescription": "CTA_head"},
    ],
    "bone kernel": [
        {"ConvolutionKernel": "BONEPLUS"},
        {"ConvolutionKernel": ["Hr64h", "3"]},
        {"ConvolutionKernel": "FC30"},
        {"ConvolutionKernel": "YD"},
        {"SeriesDescription": "Thin Bone"},
    ],
    "other body part": [{"BodyPartExamined": "KNEE"}, {"SeriesDescription": "CHEST 5mm"}],
    "fewer than 12 slices": [{"count": 11}],
    "more than 80 slices": [{"count": 81}],
    "spacing outside 2 to 10 mm": [{"spacing": 1.99}, {"spacing": 10.01}],
    "no air below -200 HU": [{"stored": AIR + 800}],
}
PLAIN = [
    {"ContrastBolusAgent": "NONE"},
    {"SeriesDescription": "HEAD WITHOUT CONTRAST"},
    {"SeriesDescription": "BRAIN W/O CONTRAST"},
    {"SeriesDescription": "NON-CONTRAST"},
    {"SeriesDescription": "CT PLAIN THIN"},
    {"ConvolutionKernel": "H31s"},
    {"ConvolutionKernel": "FC64"},
    {"ConvolutionKernel": "UB"},
    {"ConvolutionKernel": "STANDARD"},
    {"BodyPartExamined": "HEADNECK"},
    {"BodyPartExamined": "SKULL", "SeriesDescription": "NECK"},
    {"count": 80, "spacing": 2.0},
    {"spacing": 10.0},
    {"stored": AIR + 799},
]


EACH = [(name, how) for name, each in {**WARNED, "": PLAIN}.items() for how in each]


@pytest.mark.parametrize(("warning", "how"), EACH)
def test_what_is_unusual_for_a_head_without_contrast_is_a_warning(warning, how, tmp_path):
    write_series(tmp_path, "1", **how)
    assert describe(tmp_path)["warnings"].tolist() == [warning]


def test_two_acquisitions_at_the_same_places_are_a_warning(tmp_path):
    write_series(tmp_path, "1", AcquisitionNumber=1)
    for path in sorted((tmp_path / "1").iterdir()):
        path.rename(path.with_suffix(".first"))
    write_series(tmp_path, "1", AcquisitionNumber=2)
    for path in (tmp_path / "1").glob("*.first"):
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID += ".9"
        dataset.save_as(path)
    table = describe(tmp_path)
    assert table["warnings"].tolist() == ["two acquisitions at the same places"]
    assert table[["slices", "spacing"]].values.tolist() == [[24, 5.0]]


@pytest.mark.parametrize(("plane", "name"), [(CORONAL, "coronal"), (SAGITTAL, "sagittal")])
def test_a_series_of_another_plane_is_listed_without_a_slice(plane, name, tmp_path):
    write_series(tmp_path, "1")
    write_series(tmp_path, "2", plane=plane, count=3, SeriesDescription="MPR")
    row = describe(tmp_path).loc["1.2.2"]
    assert row[["plane", "slices", "left_out", "spacing"]].tolist() == [name, 0, 3, 5.0]
    assert (row["warnings"], row["SeriesDescription"]) == ("plane is not axial", "MPR")


def test_a_slice_of_another_plane_is_left_out_of_its_series(tmp_path):
    write_series(tmp_path, "1")
    scout = {"ImageOrientationPatient": CORONAL, "SOPInstanceUID": "1.2.1.99"}
    write_slice(tmp_path / "scout.dcm", AIR, SeriesInstanceUID="1.2.1", **scout)
    row = describe(tmp_path).loc["1.2.1"]
    assert row[["slices", "left_out", "plane"]].tolist() == [12, 1, "axial"]


def choose(folder):
    chosen = choose_series(describe_series(*index_slices(folder, 1)))
    return dict(zip(chosen["SeriesInstanceUID"], chosen["reason"], strict=True))


def test_of_a_hospitals_study_the_plain_axial_series_of_5_mm_is_chosen(tmp_path):
    write_series(tmp_path, "1", plane=CORONAL, count=40)
    write_series(tmp_path, "2", ConvolutionKernel="BONE")
    write_series(tmp_path, "3", ContrastBolusAgent="IOHEXOL")
    write_series(tmp_path, "4", spacing=0.625, count=30)
    write_series(tmp_path, "5", spacing=4.5, count=13)
    write_series(tmp_path, "6", spacing=5.0, count=3)
    write_series(tmp_path, "7", BodyPartExamined="KNEE", count=20)
    reason = "axial, no contrast stated, no bone kernel stated, spacing 4.5 mm; best of 7 series"
    assert choose(tmp_path) == {"1.2.5": reason}


ORDERED = [  # each before the next
    {},
    {"spacing": 3.0},
    {"ConvolutionKernel": "BONE"},
    {"ContrastBolusAgent": "IOHEXOL"},
    {"count": 11},
    {"BodyPartExamined": "KNEE"},
]


@pytest.mark.parametrize("place", range(len(ORDERED) - 1))
def test_each_rule_goes_before_the_next(place, tmp_path):
    write_series(tmp_path, "1", **ORDERED[place + 1])
    write_series(tmp_path, "2", **ORDERED[place])
    assert list(choose(tmp_path)) == ["1.2.2"]


def test_what_the_only_series_lacks_is_said(tmp_path):
    write_series(tmp_path, "1", ConvolutionKernel="BONE", ContrastBolusAgent="IOHEXOL")
    reason = "axial, with contrast, bone kernel, spacing 5.0 mm; the only series"
    assert choose(tmp_path) == {"1.2.1": reason}


def test_a_study_without_an_axial_series_has_no_row(tmp_path):
    write_series(tmp_path, "1")
    write_series(tmp_path, "2", plane=CORONAL, StudyInstanceUID="1.2.2")
    assert list(choose(tmp_path)) == ["1.2.1"]
