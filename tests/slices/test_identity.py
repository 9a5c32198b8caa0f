"""Which slices are one series or patient, and which files are there twice."""

import numpy as np
import pytest
from dicom_files import encoded, reasons, write_slice, write_stack

from kit.slices.index import index_files, index_slices, list_files


def test_the_same_file_twice_and_a_repeated_name_are_told_apart(tmp_path):
    first = write_slice(tmp_path / "1.dcm", SOPInstanceUID="1.5")
    (tmp_path / "2.dcm").write_bytes(first.read_bytes())
    write_slice(tmp_path / "3.dcm", np.ones((8, 8), np.int16), SOPInstanceUID="1.5")
    slices, skipped = index_slices(tmp_path, 1)
    assert slices["path"].tolist() == [str(first)]
    assert reasons(skipped) == {
        "2.dcm": f"a copy of another file: {first}",
        "3.dcm": f"repeats a SOPInstanceUID: {first} has it too",
    }


def test_uids_that_an_anonymizer_restarted_are_those_of_two_patients(tmp_path):
    for patient in "AB":
        write_stack(tmp_path / patient, PatientID=patient)
    slices, skipped = index_slices(tmp_path, 1)
    assert skipped.empty
    assert slices["PatientID"].tolist() == ["A"] * 3 + ["B"] * 3
    assert slices["SOPInstanceUID"].tolist() == ["1.0", "1.1", "1.2"] * 2
    slices, skipped = index_files(list_files(tmp_path), "them", 1, unique=True)
    assert slices["PatientID"].tolist() == ["A"] * 3
    assert skipped["code"].tolist() == ["repeats a SOPInstanceUID"] * 3


def test_one_slice_uid_in_two_series_is_two_slices(tmp_path):
    for series in "12":
        write_stack(tmp_path / series, SeriesInstanceUID=series)
    slices, skipped = index_slices(tmp_path, 1)
    assert skipped.empty
    assert slices["seq"].tolist() == [1, 2, 3] * 2


def test_a_broken_copy_does_not_displace_a_whole_one(tmp_path):
    content = encoded("JPEG2000LosslessOnlyTransferSyntax_1.2.840.10008.1.2.4.90").read_bytes()
    (tmp_path / "a.dcm").write_bytes(content[:-2000])
    (tmp_path / "b.dcm").write_bytes(content)
    (tmp_path / "c.dcm").write_bytes(content)
    slices, skipped = index_slices(tmp_path, 1)
    assert slices["path"].tolist() == [str(tmp_path / "b.dcm")]
    found = reasons(skipped)
    assert found.pop("c.dcm") == f"a copy of another file: {tmp_path}/b.dcm"
    assert found.pop("a.dcm") == "file is cut short, or holds no image"


@pytest.mark.parametrize("column", ["PatientID", "StudyInstanceUID"])
def test_what_is_blank_in_a_part_of_a_series_is_that_of_the_rest(tmp_path, caplog, column):
    write_stack(tmp_path, count=4)
    write_slice(tmp_path / "2.dcm", SOPInstanceUID="1.2", ImagePositionPatient=[0, 0, 10],
                **{column: None})  # fmt: skip
    slices, _ = index_slices(tmp_path, 1)
    assert slices["series"].unique().tolist() == ["P1/1.2.1/1.2.1.1"]
    assert slices["seq"].tolist() == [1, 2, 3, 4]
    assert f"1 slice: {column} is blank and taken from its series" in caplog.messages


def test_a_blank_patient_among_two_is_left_blank(tmp_path):
    for patient in ("A", "B", None):
        write_slice(tmp_path / f"{patient}.dcm", SOPInstanceUID=str(patient), PatientID=patient)
    slices, _ = index_slices(tmp_path, 1)
    assert slices["series"].nunique() == 3


def write_two_scans(folder, places, **tags):
    """Three slices of a patient, 5 mm apart, and others at `places` whose PatientID is blank."""
    tags = {"FrameOfReferenceUID": "1.9", **tags}
    write_stack(folder, FrameOfReferenceUID="1.9")
    for number, z in enumerate(places):
        write_slice(folder / f"x{number}.dcm", SOPInstanceUID=f"7.{number}", PatientID=None,
                    ImagePositionPatient=[0, 0, z], InstanceNumber=30 + number, **tags)  # fmt: skip


@pytest.mark.parametrize(
    ("places", "tags"),
    [
        ([0, 5, 10], {}),  # the places of the others
        ([2.5, 7.5], {}),  # between them
        ([5.0004], {}),
        ([15, 20], {"FrameOfReferenceUID": "1.8"}),
    ],
)
def test_blank_slices_that_may_be_another_patients_are_left_blank(tmp_path, places, tags):
    write_two_scans(tmp_path, places, **tags)
    slices, _ = index_slices(tmp_path, 1)
    assert slices["series"].unique().tolist() == ["/1.2.1/1.2.1.1", "P1/1.2.1/1.2.1.1"]
    assert slices["PatientID"].isna().sum() == len(places)
    note = "PatientID is blank, and its series may be another's of the same UID"
    assert (slices["note"].fillna("").str.contains(note) == slices["PatientID"].isna()).all()


def test_blank_slices_that_repeat_numbers_of_slices_without_a_position_are_left_blank(tmp_path):
    write_stack(tmp_path, ImagePositionPatient=None)
    write_slice(tmp_path / "x.dcm", SOPInstanceUID="7.1", ImagePositionPatient=None,
                InstanceNumber=8, PatientID=None)  # fmt: skip
    slices, _ = index_slices(tmp_path, 1)
    assert slices["series"].value_counts().to_dict() == {
        "P1/1.2.1/1.2.1.1": 3,
        "/1.2.1/1.2.1.1": 1,
    }


@pytest.mark.parametrize("places", [[15], [-5, 15, 20], [-2000]])
def test_blank_slices_that_go_on_with_the_others_are_theirs(tmp_path, places):
    write_two_scans(tmp_path, places)
    slices, _ = index_slices(tmp_path, 1)
    assert slices["series"].nunique() == 1
    assert slices["position"].tolist() == sorted([0, 5, 10, *places])


SAME = {"FrameOfReferenceUID": "1.9", "SeriesNumber": 2, "SliceThickness": 5}


def write_single_series(folder, count=12, **tags):
    """Slices each of which has a SeriesInstanceUID of its own."""
    for z in range(count):
        write_slice(folder / f"{z}.dcm", SOPInstanceUID=f"1.{z}", SeriesInstanceUID=f"2.{z}",
                    ImagePositionPatient=[0, 0, 5 * z], InstanceNumber=z, **tags)  # fmt: skip


def test_slices_each_of_a_series_of_its_own_are_joined_where_the_rest_says_so(tmp_path, caplog):
    write_single_series(tmp_path, **SAME)
    slices, _ = index_slices(tmp_path, 1)
    assert slices["series"].nunique() == 1
    assert slices["position"].tolist() == [5.0 * z for z in range(12)]
    assert "12 slices: joined: it is of one series but for the UID" in caplog.messages


def test_series_are_joined_within_their_patient_alone(tmp_path):
    for patient in "AB":
        write_single_series(tmp_path / patient, count=4, PatientID=patient, **SAME)
    slices, _ = index_slices(tmp_path, 1)
    assert slices["series"].unique().tolist() == ["A/1.2.1/2.0", "B/1.2.1/2.0"]
    assert slices["seq"].tolist() == [1, 2, 3, 4] * 2


@pytest.mark.parametrize("lacking", SAME)
def test_slices_each_of_a_series_of_its_own_are_told_where_it_does_not(tmp_path, caplog, lacking):
    tags = {**SAME, lacking: None} if lacking != "SliceThickness" else {}
    write_single_series(tmp_path, **tags)
    slices, _ = index_slices(tmp_path, 1)
    assert slices["series"].nunique() == 12
    note = "12 slices: one of several series of a single slice in its study"
    assert note in caplog.messages


def test_slices_sent_again_in_another_series_are_joined_if_they_fill_it(tmp_path):
    write_stack(tmp_path, count=8, **SAME)
    for z in (8, 9):
        write_slice(tmp_path / f"{z}.dcm", SOPInstanceUID=f"7.{z}", SeriesInstanceUID="7",
                    ImagePositionPatient=[0, 0, 5 * z], InstanceNumber=9 - z, **SAME)  # fmt: skip
    slices, _ = index_slices(tmp_path, 1)
    assert slices["series"].nunique() == 1
    assert slices["position"].tolist() == [5.0 * z for z in range(10)]


@pytest.mark.parametrize(
    "tags",
    [
        {"SeriesNumber": 3},
        {"SeriesDescription": "BONE"},
        {"AcquisitionNumber": 2},
        {"FrameOfReferenceUID": "1.8"},
        {"ImageOrientationPatient": [1, 0, 0, 0, 0.9, -0.435890]},
        {"SliceThickness": 1},
        {"PixelSpacing": [0.5, 0.5]},
        {"StudyInstanceUID": "9"},
        {"ImagePositionPatient": [0, 0, 5]},  # a place of the other series: another reconstruction
    ],
)
def test_series_that_differ_in_more_than_the_uid_stay_apart(tmp_path, tags):
    write_stack(tmp_path, count=3, AcquisitionNumber=1, PixelSpacing=[0.4, 0.4], **SAME)
    other = {"AcquisitionNumber": 1, "PixelSpacing": [0.4, 0.4], **SAME,
             "ImagePositionPatient": [0, 0, 15], **tags}  # fmt: skip
    write_slice(tmp_path / "x.dcm", SOPInstanceUID="7.1", SeriesInstanceUID="7", **other)
    slices, _ = index_slices(tmp_path, 1)
    assert slices["series"].nunique() == 2
