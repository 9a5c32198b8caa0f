"""A folder or zip of real and made files → the slice table and the skipped files."""

import os
import time
import zipfile

import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import shared
from dicom_files import reasons, write_slice

from kit.slices.entries import DESCRIPTION_COLUMNS, HEADER_COLUMNS, read_entries
from kit.slices.index import index_files, index_slices, list_files


def test_a_real_head_is_indexed_in_the_order_of_its_instance_numbers():
    slices, skipped = index_slices(shared("data/dcm_qa_ct/GE"), workers=1)
    assert slices["InstanceNumber"].tolist() == list(range(1, 29))
    assert skipped.empty
    # The table moved 4.22, 1.14 and 7.38 mm a step; the normal is tilted by 18.5° against it.
    steps = np.array([4.22] * 13 + [1.14] + [7.38] * 13) * np.cos(np.deg2rad(18.5))
    np.testing.assert_allclose(np.diff(slices["position"]), steps, atol=0.01)


def test_of_a_hospitals_study_only_the_axial_series_is_usable():
    slices, skipped = index_slices(shared("data/dcm_qa_ct/Philips"), workers=1)
    assert len(slices) == 28
    assert slices["path"].str.contains("/S2010/").all()
    np.testing.assert_allclose(np.diff(slices["position"]), 5, atol=1e-3)
    assert {row.path.split("S21570/")[1]: row.reason for row in skipped.itertuples()} == {
        "S1000/I10": "a localizer, not an axial slice: ImageType says LOCALIZER",
        "S4010/I10": "not a CT image: SOPClassUID is Secondary Capture Image Storage",
        "S4010/I40": "not a CT image: SOPClassUID is Secondary Capture Image Storage",
    }


def test_a_missing_slice_two_spacings_and_one_position_are_indexed():
    folder = shared("data/dicom2nifti")
    slices, skipped = index_slices(folder, workers=1)
    assert skipped.empty
    steps = {
        name: np.diff(group["position"]).round(2).tolist()
        for name, group in slices.groupby(slices["path"].str.split("/").str[-3:-1].str.join("/"))
    }
    assert steps == {
        "gantrytilting/001": [4.85] * 3,
        "notavolume/001": [0.0] * 3,
        "sliceincrement/001": [5.0, 5.0, 10.0],
        "sliceincrement/002": [0.75, 0.75, 1.5],
    }


def test_a_zip_gives_the_same_table_as_its_unpacked_folder(tmp_path):
    source = shared("data/dicom-numpy/dupe-positions.zip")
    with zipfile.ZipFile(source) as archive:
        archive.extractall(tmp_path / "dupe-positions.zip.d")
    zipped, unpacked = (index_slices(path, 1)[0] for path in (source, tmp_path))
    assert len(zipped) == 11
    assert (zipped["path"].map(os.path.basename) == unpacked["path"].map(os.path.basename)).all()
    pd.testing.assert_frame_equal(zipped.drop(columns="path"), unpacked.drop(columns="path"))


def test_the_table_has_the_promised_columns(tmp_path):
    write_slice(tmp_path / "a.dcm", PatientName="Doe^Jane", PatientBirthDate="19700101")
    slices, skipped = index_slices(tmp_path, 1)
    ours = {"path", "series", "seq", "position", "repaired", "note"}
    assert set(slices) == {*ours, *HEADER_COLUMNS, *DESCRIPTION_COLUMNS}
    assert {"path", "reason", "series", "position"} <= set(skipped)
    assert slices["seq"].tolist() == [1]  # a series of one slice
    assert slices["series"].tolist() == ["P1/1.2.1/1.2.1.1"]


def test_three_thousand_slices_are_one_series(tmp_path):
    tags = {"SOPInstanceUID": "9.7777", "ImagePositionPatient": [0, 0, "7777"]}
    template = write_slice(tmp_path / "t.dcm", **tags)
    content = template.read_bytes()
    assert content.count(b"7777") == 3  # the name also stands in the file meta
    template.unlink()
    for number in range(3000):
        (tmp_path / f"{number}.dcm").write_bytes(
            content.replace(b"7777", b"%04d" % (5000 - number))
        )
    slices, skipped = index_slices(tmp_path, workers=1)
    assert skipped.empty
    assert slices["seq"].tolist() == list(range(1, 3001))
    assert slices["position"].tolist() == list(range(2001, 5001))


def test_several_studies_in_one_folder_are_kept_apart(tmp_path):
    for study in "12":
        for z in (5, 0):
            path = tmp_path / f"{study}{z}.dcm"
            write_slice(path, StudyInstanceUID=study, ImagePositionPatient=[0, 0, z])
    slices, _ = index_slices(tmp_path, 1)
    found = list(zip(slices["StudyInstanceUID"], slices["seq"], slices["position"], strict=True))
    assert found == [("1", 1, 0.0), ("1", 2, 5.0), ("2", 1, 0.0), ("2", 2, 5.0)]


def test_links_are_followed_once_and_loops_end(tmp_path):
    inner = tmp_path / "in"
    write_slice(inner / "1.dcm")
    (inner / "loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(inner)
    (tmp_path / "broken.dcm").symlink_to(tmp_path / "nothing")
    slices, skipped = index_slices(tmp_path, 1)
    assert len(slices) == 1
    assert reasons(skipped) == {"broken.dcm": "No such file or directory"}


def test_a_folder_that_cannot_be_listed_is_an_error_that_names_it(tmp_path, monkeypatch):
    write_slice(tmp_path / "closed" / "1.dcm")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="closed"):
        index_slices(tmp_path, 1)


@pytest.mark.parametrize("closed", ["closed", "clo\x1b[2Jsed"])
def test_a_folder_that_cannot_be_listed_is_passed_over_where_that_is_asked_for(
    tmp_path, monkeypatch, caplog, closed
):
    write_slice(tmp_path / "open" / "1.dcm")
    write_slice(tmp_path / closed / "1.dcm")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("sed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    slices, skipped = index_slices(tmp_path, 1, skip_unreadable=True)
    assert slices["path"].tolist() == [f"{tmp_path}/open/1.dcm"]
    shown = f"{tmp_path}/{ascii(closed)[1:-1]}"
    row = {
        "path": shown,
        "reason": "folder cannot be listed: Permission denied",
        "code": "folder cannot be listed",
    }
    assert skipped[list(row)].to_dict("records") == [row]
    assert f"{shown}: {row['reason']}; its files are left out" in caplog.messages
    with pytest.raises(PermissionError):  # nothing else is there
        index_slices(tmp_path / closed, 1, skip_unreadable=True)


def test_a_pipe_and_a_vanished_file_are_listed(tmp_path):
    write_slice(tmp_path / "1.dcm")
    os.mkfifo(tmp_path / "pipe")
    paths = [*list_files(tmp_path), str(tmp_path / "gone.dcm")]
    slices, skipped = index_files(paths, str(tmp_path), 1)
    assert len(slices) == 1
    assert reasons(skipped) == {
        "gone.dcm": "No such file or directory",
        "pipe": "not a regular file",
    }


def test_nothing_to_index_is_said_plainly(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder or zip archive"):
        index_slices(tmp_path / "none")
    with pytest.raises(ValueError, match="there is no file in it"):
        index_slices(tmp_path)
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(OSError, match=r"broken\.zip: not a zip archive that can be read"):
        index_slices(tmp_path / "broken.zip")


def test_one_file_is_a_folder_of_one(tmp_path):
    path = write_slice(tmp_path / "1.dcm")
    assert index_slices(path, 1)[0]["path"].tolist() == [str(path)]


def test_zip_members_are_read_in_place_whatever_their_names_say(tmp_path):
    good = write_slice(tmp_path / "1.dcm", SOPInstanceUID="1.1").read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    outside = write_slice(tmp_path / "x.dcm", SOPInstanceUID="1.2").read_bytes()
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("1.dcm", good)
        archive.writestr("../../x.dcm", outside)
        archive.writestr("/etc/2.dcm", b"nothing")
    before = sorted(tmp_path.rglob("*"))
    slices, skipped = index_slices(folder / "a.zip", 1)
    assert slices["SOPInstanceUID"].tolist() == ["1.1", "1.2"]
    assert reasons(skipped) == {"2.dcm": "not a DICOM file"}
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_members_of_one_name_are_all_listed_for_neither_is_the_other(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, uid in (("twice.dcm", "1.1"), ("twice.dcm", "1.2"), ("once.dcm", "1.3")):
            archive.write(write_slice(tmp_path / "a.dcm", SOPInstanceUID=uid), name)
    slices, skipped = index_slices(path, 1)
    assert slices["SOPInstanceUID"].tolist() == ["1.3"]
    reason = "one of several zip members of this name: 2 of them"
    assert skipped[["path", "reason"]].to_numpy().tolist() == [[f"{path}/twice.dcm", reason]] * 2


def test_a_zip_that_was_replaced_is_read_anew(tmp_path):
    path = tmp_path / "a.zip"
    for uid in ("1.1", "1.2"):
        with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:
            archive.write(write_slice(tmp_path / "a.dcm", SOPInstanceUID=uid), "a.dcm")
        os.replace(tmp_path / "new.zip", path)
        assert index_slices(path, 1)[0]["SOPInstanceUID"].tolist() == [uid]


def test_zip_bombs_and_locked_members_are_refused_without_reading_them(tmp_path):
    good = write_slice(tmp_path / "1.dcm").read_bytes()
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("good.dcm", good)
        archive.writestr("locked.dcm", good)
        archive.writestr("packed.dcm", good)
        with archive.open("bomb.dcm", "w") as member:
            member.write(good[:400])
            for _ in range(600):
                member.write(bytes(1 << 20))
    content = bytearray(path.read_bytes())
    assert len(content) < 10_000_000
    locked, packed = (content.rindex(b"PK\x01\x02", 0, content.rindex(name)) for name in
                      (b"locked.dcm", b"packed.dcm"))  # fmt: skip
    content[locked + 8] |= 1  # encrypted
    content[packed + 10] = 77  # an unknown method
    path.write_bytes(content)
    started = time.process_time()
    slices, skipped = index_slices(path, 1)
    assert time.process_time() - started < 0.5
    assert slices["path"].tolist() == [f"{path}/good.dcm"]
    found = reasons(skipped)
    assert found.pop("bomb.dcm").endswith("any file of a head CT: 629 MB")
    assert "encrypted" in found.pop("locked.dcm")
    assert "zip member is packed by an unknown method" in found.pop("packed.dcm")
    assert not found


@pytest.mark.slow
def test_reading_headers_costs_little_more_than_pydicom_itself():
    paths = [str(path) for path in sorted(shared("data/dcm_qa_ct").rglob("*")) if path.is_file()]

    readers = {
        "bare": lambda: [pydicom.dcmread(path, stop_before_pixels=True) for path in paths],
        "ours": lambda: read_entries(paths),
        "index": lambda: index_files(paths, "them", 1),
    }
    seconds = dict.fromkeys(readers, np.inf)
    for _ in range(9):  # in turn: what slows the machine down slows all three
        for name, read in readers.items():
            started = time.process_time()
            read()
            seconds[name] = min(seconds[name], time.process_time() - started)
    assert seconds["ours"] < 1.5 * seconds["bare"]
    assert seconds["index"] < 1.5 * seconds["bare"] + 0.02  # what the table itself costs
