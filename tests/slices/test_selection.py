"""Which files become slices: their positions, cut files, copies."""

import os

import pandas as pd
import pytest
from dicom_files import (
    find_places,
    reasons,
    write_cut_short,
    write_slice,
    write_stack,
)

from kit.slices.index import index_slices


def test_without_positions_the_instance_number_orders_or_the_slice_is_skipped(tmp_path):
    for number in (3, 1, 2):
        path = tmp_path / f"numbered{number}.dcm"
        write_slice(path, ImagePositionPatient=None, InstanceNumber=number, SeriesInstanceUID="1")
    write_slice(tmp_path / "lost.dcm", ImagePositionPatient=None, SeriesInstanceUID="2")
    write_slice(tmp_path / "placed.dcm", SeriesInstanceUID="2", InstanceNumber=None)
    slices, skipped = index_slices(tmp_path, 1)
    assert [os.path.basename(path) for path in slices["path"]] == [
        "numbered1.dcm", "numbered2.dcm", "numbered3.dcm", "placed.dcm"
    ]  # fmt: skip
    assert reasons(skipped) == {
        "lost.dcm": "ImagePositionPatient is missing: InstanceNumber does not tell its place either"
    }


def test_a_file_cut_short_keeps_its_place_and_takes_none_of_the_others(tmp_path):
    for z in range(3):
        write_slice(tmp_path / f"{z}.dcm", ImagePositionPatient=[0, 0, z])
    middle = tmp_path / "1.dcm"
    middle.write_bytes(middle.read_bytes()[:-1])
    slices, skipped = index_slices(tmp_path, 1)
    assert slices["seq"].tolist() == [1, 2]
    assert skipped["reason"].tolist() == ["pixel data is cut short: 127 of 128 bytes"]
    assert skipped[["series", "position"]].to_numpy().tolist() == [["P1/1.2.1/1.2.1.1", 1.0]]


def test_files_cut_short_do_not_turn_the_series_and_are_placed_along_its_normal(tmp_path):
    write_stack(tmp_path)
    expected, _ = index_slices(tmp_path, 1)
    for number in range(4):
        write_cut_short(
            tmp_path / f"x{number}.dcm",
            ImagePositionPatient=[0, 100 * number, 7 + number],
            ImageOrientationPatient=[1, 0, 0, 0, 0.8, -0.6],
        )
    slices, skipped = index_slices(tmp_path, 1)
    pd.testing.assert_frame_equal(slices, expected)
    assert find_places(skipped) == {f"x{i}.dcm": ("P1/1.2.1/1.2.1.1", 7.0 + i) for i in range(4)}


def test_a_file_cut_short_without_a_position_does_not_send_the_series_by_number(tmp_path):
    write_stack(tmp_path)
    expected, _ = index_slices(tmp_path, 1)
    assert expected["InstanceNumber"].tolist() == [9, 8, 7]
    write_cut_short(tmp_path / "x.dcm", ImagePositionPatient=None, InstanceNumber=99)
    slices, skipped = index_slices(tmp_path, 1)
    pd.testing.assert_frame_equal(slices, expected)
    assert find_places(skipped) == {"x.dcm": (None, None)}


@pytest.mark.parametrize("number", [None, 8])
def test_a_file_cut_short_does_not_spoil_a_series_that_goes_by_number(tmp_path, number):
    write_stack(tmp_path, ImagePositionPatient=None)
    write_cut_short(tmp_path / "x.dcm", ImagePositionPatient=None, InstanceNumber=number)
    slices, skipped = index_slices(tmp_path, 1)
    assert slices["position"].tolist() == [7, 8, 9]
    place = ("P1/1.2.1/1.2.1.1", 8.0) if number else (None, None)
    assert find_places(skipped) == {"x.dcm": place}


def test_a_slice_with_neither_position_nor_number_takes_none_of_the_numbered_with_it(tmp_path):
    write_stack(tmp_path, ImagePositionPatient=None)
    write_slice(tmp_path / "lost.dcm", ImagePositionPatient=None)
    slices, skipped = index_slices(tmp_path, 1)
    assert slices["seq"].tolist() == [1, 2, 3]
    assert list(reasons(skipped)) == ["lost.dcm"]


def test_a_copy_that_cannot_be_placed_does_not_displace_the_one_that_can(tmp_path):
    write_stack(tmp_path / "in")
    write_slice(tmp_path / "a.dcm", SOPInstanceUID="1.1", ImagePositionPatient=None)
    slices, skipped = index_slices(tmp_path, 1)
    assert slices["SOPInstanceUID"].tolist() == ["1.0", "1.1", "1.2"]
    assert reasons(skipped) == {
        "a.dcm": "ImagePositionPatient is missing: InstanceNumber does not tell its place either"
    }


def test_a_series_of_which_every_file_is_cut_short_is_placed_by_itself(tmp_path):
    for z in range(3):
        write_cut_short(tmp_path / f"{z}.dcm", ImagePositionPatient=[0, 0, 5 * z])
    write_slice(tmp_path / "other.dcm", SeriesInstanceUID="2")
    slices, skipped = index_slices(tmp_path, 1)
    assert len(slices) == 1
    assert skipped["position"].tolist() == [0, 5, 10]


def test_a_scout_changes_neither_normal_nor_positions(tmp_path):
    write_stack(tmp_path, ImageOrientationPatient=[1, 0, 0, 0, 0.936672, -0.350207])
    expected, _ = index_slices(tmp_path, 1)
    for name, axes in (("coronal", [1, 0, 0, 0, 0, -1]), ("tilted", [1, 0, 0, 0, 1, 0])):
        write_slice(tmp_path / f"{name}.dcm", ImagePositionPatient=[0, 0, 200],
                    ImageOrientationPatient=axes)  # fmt: skip
    slices, skipped = index_slices(tmp_path, 1)
    pd.testing.assert_frame_equal(slices, expected)
    assert reasons(skipped) == {
        "coronal.dcm": "plane is not axial: its normal is 90° off the body's axis",
        "tilted.dcm": "plane is more than 10° off that of its series",
    }


@pytest.mark.parametrize("shifted", [5.0002, 5.002, 4.996])
def test_a_slice_placed_by_its_number_and_slices_of_one_place_are_noted(tmp_path, caplog, shifted):
    write_stack(tmp_path, count=5)
    write_slice(tmp_path / "2.dcm", SOPInstanceUID="1.2", ImagePositionPatient=None,
                InstanceNumber=7)  # fmt: skip
    slices, skipped = index_slices(tmp_path, 1)
    assert skipped.empty
    assert slices["position"].tolist() == [0, 5, 10, 15, 20]
    assert slices["SOPInstanceUID"].tolist() == ["1.0", "1.1", "1.2", "1.3", "1.4"]
    note = "its position is missing and its InstanceNumber gave its place"
    assert slices["note"].tolist() == [None, None, note, None, None]
    assert f"1 slice: {note}" in caplog.messages
    write_slice(tmp_path / "again.dcm", SOPInstanceUID="1.9", ImagePositionPatient=[0, 0, shifted])
    slices, _ = index_slices(tmp_path, 1)
    note = "another slice of its series is at the same place"
    assert slices["note"].eq(note).tolist() == [False, True, True, False, False, False]
    assert f"2 slices: {note}" in caplog.messages
