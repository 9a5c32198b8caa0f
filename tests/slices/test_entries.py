"""What a header contributes to the table, and what leaves the file out."""

import errno
import os

import numpy as np
import pytest
from dicom_files import reasons, replace_once, write_slice

from kit.processes import ScarcityError
from kit.slices.index import index_slices


@pytest.mark.parametrize("number", [b"1e999 ", b"2.5   ", b"YAMADA", b"nan   ", b"-1e300"])
def test_an_instance_number_that_is_no_whole_number_is_as_good_as_missing(tmp_path, number):
    for name, place in (("placed", [0, 0, 0]), ("lost", None)):
        path = tmp_path / f"{name}.dcm"
        write_slice(path, ImagePositionPatient=place, InstanceNumber="123456",
                    SeriesInstanceUID=name, PixelSpacing=None)  # fmt: skip
        replace_once(path, b"123456", number)
    slices, skipped = index_slices(tmp_path, 1)
    assert [os.path.basename(path) for path in slices["path"]] == ["placed.dcm"]
    assert slices["InstanceNumber"].isna().all()
    assert reasons(skipped)["lost.dcm"].startswith("ImagePositionPatient is missing")


def test_what_the_scanner_calls_axial_is_a_slice_in_any_plane_of_its_series(tmp_path):
    """A head bent far back, or a patient on the side: the gantry goes along another axis."""
    for y in range(3):
        write_slice(tmp_path / f"{y}.dcm", ImagePositionPatient=[0, 5 * y, 0], InstanceNumber=y,
                    ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
                    ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])  # fmt: skip
    slices, skipped = index_slices(tmp_path, 1)
    assert skipped.empty
    assert slices["InstanceNumber"].tolist() == [0, 1, 2]
    assert slices["position"].tolist() == [0, 5, 10]


def test_sizes_that_are_no_numbers_do_not_enter_the_table(tmp_path):
    for name, text in (("good", b"0.4883"), ("name", b"YAMADA"), ("date", b"410203"),
                       ("none", b"nan   "), ("zero", b"0.0000")):  # fmt: skip
        for keyword, tags in {
            "PixelSpacing": {"PixelSpacing": ["7.7777", "1"]},
            "SliceThickness": {"SliceThickness": "7.7777"},
        }.items():
            path = write_slice(tmp_path / f"{name}-{keyword}.dcm", **tags)
            replace_once(path, b"7.7777", text)
    slices, _ = index_slices(tmp_path, 1)
    assert len(slices) == 10
    found = slices.set_index(slices["path"].map(os.path.basename))
    assert found["PixelSpacing"].dropna().to_dict() == {"good-PixelSpacing.dcm": "0.4883\\1"}
    assert found["SliceThickness"].dropna().to_dict() == {"good-SliceThickness.dcm": "0.4883"}


def test_a_slice_that_cannot_be_placed_or_named_is_skipped_with_its_reason(tmp_path):
    write_slice(tmp_path / "good.dcm", PatientID=None, StudyInstanceUID=None)
    for name, tags in {
        "sop.dcm": {"SOPInstanceUID": None},
        "series.dcm": {"SeriesInstanceUID": None},
        "newline.dcm": {"SOPInstanceUID": "1.2\n3"},
        "two.dcm": {"ImagePositionPatient": [1, 2]},
        "far.dcm": {"ImagePositionPatient": ["0", "0", "-1.7e308"]},
        "axes.dcm": {"ImageOrientationPatient": [7, 0, 0, 0, 1, 0]},
        "flat.dcm": {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        "coronal.dcm": {
            "ImageOrientationPatient": [1, 0, 0, 0, 0, -1],
            "ImageType": ["DERIVED", "SECONDARY", "MPR"],
        },
        "oblique.dcm": {
            "ImageType": None,
            "ImageOrientationPatient": [1, 0, 0, 0, 0.642788, -0.766044],
        },
    }.items():
        write_slice(tmp_path / name, **tags)
    slices, skipped = index_slices(tmp_path, 1)
    assert [os.path.basename(path) for path in slices["path"]] == ["good.dcm"]
    axes = "ImageOrientationPatient is not two unit vectors at right angles"
    assert reasons(skipped) == {
        "sop.dcm": "SOPInstanceUID is missing",
        "series.dcm": "SeriesInstanceUID is missing",
        "newline.dcm": "SOPInstanceUID holds characters that are not text",
        "two.dcm": "ImagePositionPatient is not 3 numbers: it is 1.0\\2.0",
        "far.dcm": "ImagePositionPatient cannot be millimetres in a scanner",
        "axes.dcm": f"{axes}: it is 7.0\\0.0\\0.0\\0.0\\1.0\\0.0",
        "flat.dcm": f"{axes}: it is 1.0\\0.0\\0.0\\1.0\\0.0\\0.0",
        "coronal.dcm": "plane is not axial: its normal is 90° off the body's axis",
        "oblique.dcm": "plane is not axial: its normal is 50° off the body's axis",
    }


def test_the_wrong_intercept_is_reported_and_an_unlikely_one_noted(tmp_path, caplog):
    wrong, right = np.full((8, 8), 3096, np.uint16), np.full((8, 8), 1064, np.uint16)
    write_slice(tmp_path / "1.dcm", wrong, BitsStored=12)
    write_slice(tmp_path / "2.dcm", wrong, BitsStored=16)
    write_slice(tmp_path / "3.dcm", right, BitsStored=12)
    write_slice(tmp_path / "4.dcm", right, BitsStored=12, RescaleIntercept=-1024)
    slices, _ = index_slices(tmp_path, 1)
    assert slices.sort_values("path")["repaired"].tolist() == [True, False, False, False]
    note = "no value can be below -200 HU, so the rescale intercept may be wrong"
    assert slices.sort_values("path")["note"].str.contains(note).tolist() == [
        False, True, True, False
    ]  # fmt: skip
    assert f"2 slices: {note}" in caplog.messages


def test_a_suspect_file_whose_pixels_cannot_be_read_keeps_its_place(tmp_path):
    path = write_slice(tmp_path / "1.dcm", np.zeros((8, 8), np.uint16), BitsStored=12)
    pixels = np.random.default_rng(0).bytes(40)
    replace_once(path, b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
    content = path.read_bytes()
    start = content.rindex(b"\xe0\x7f\x10\x00")
    item = b"\xfe\xff\x00\xe0"
    path.write_bytes(
        content[: start + 8] + b"\xff" * 4 + item + bytes(4) + item + b"\x28\0\0\0" + pixels
        + b"\xfe\xff\xdd\xe0\0\0\0\0"
    )  # fmt: skip
    slices, skipped = index_slices(tmp_path, 1)
    assert slices.empty
    assert skipped["code"].tolist() == ["pixels cannot be decoded"]
    assert skipped["position"].tolist() == [0]


def test_letters_of_a_character_set_that_is_not_named_are_kept_apart(tmp_path):
    path = write_slice(tmp_path / "1.dcm", PatientID="XY", SpecificCharacterSet="ISO_IR 100")
    replace_once(path, b"LO\x02\0XY", b"LO\x02\0\xd0\x96")
    slices, _ = index_slices(tmp_path, 1)
    assert slices["PatientID"].tolist() == ["Ð\\x96"]


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\rb", "a\x9b31mb", "a\u202eb"])
def test_a_file_name_that_a_terminal_would_obey_is_made_harmless(tmp_path, name):
    write_slice(tmp_path / f"{name}.dcm")
    slices, skipped = index_slices(tmp_path, 1)
    assert slices.empty
    assert skipped["path"][0] == f"{tmp_path}/{ascii(name)[1:-1]}.dcm"
    assert skipped["path"][0].isprintable()


def test_japanese_names_and_paths_with_spaces_are_kept(tmp_path):
    folder = tmp_path / "頭部 CT (München)"
    write_slice(folder / "スライス 1.dcm", SpecificCharacterSet="ISO_IR 192", PatientID="山田-1")
    slices, skipped = index_slices(folder, 1)
    assert skipped.empty
    assert slices["PatientID"].tolist() == ["山田-1"]
    assert slices["path"].tolist() == [f"{folder}/スライス 1.dcm"]


def test_a_file_name_that_is_no_text_is_listed_and_can_be_written_down(tmp_path):
    write_slice(tmp_path / "good.dcm")
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.dcm")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes no such name")
    slices, skipped = index_slices(tmp_path, 1)
    assert len(slices) == 1
    assert reasons(skipped) == {
        "caf\\udce9.dcm": "file's name holds characters that are not text: rename it"
    }
    skipped.to_csv(tmp_path / "skipped.csv")


def test_too_many_open_files_stop_the_index_instead_of_emptying_it(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    write_slice(tmp_path / "1.dcm")
    monkeypatch.setattr("kit.dicom.parsing.open_file", fail)
    with pytest.raises(ScarcityError, match="too many files are open: raise the limit"):
        index_slices(tmp_path, 1)
