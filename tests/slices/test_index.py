"""The slice table: its order by hand and on real series, and a reason for every file left out."""

import ast
import os
import time
import zipfile

import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import shared
from dicom_files import replace_once, write_slice

from kit.slices.entries import HEADER_COLUMNS
from kit.slices.index import index_files, index_slices, list_files, order_slices
from kit.slices.order import _sort_places

AXIAL = [1, 0, 0, 0, 1, 0]


def series_of(positions, orientations=None, uids=None, **columns) -> pd.DataFrame:
    """One series of slices at `positions`, as a table for `order_slices`."""
    count = len(positions)
    return pd.DataFrame(
        {
            "PatientID": "P",
            "StudyInstanceUID": "St",
            "SeriesInstanceUID": "Se",
            "SOPInstanceUID": uids or [f"u{i:04d}" for i in range(count)],
            "ImagePositionPatient": [list(position) for position in positions],
            "ImageOrientationPatient": orientations or [AXIAL] * count,
            **columns,
        }
    )


def shuffle(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    return table.sample(frac=1, random_state=seed).reset_index(drop=True)


def order_of(table: pd.DataFrame) -> list[str]:
    """The slices' ids in order, which must not depend on the order of the rows."""
    ordered = [order_slices(shuffle(table, seed)) for seed in range(3)]
    assert all(frame.equals(ordered[0]) for frame in ordered)
    assert ordered[0]["seq"].tolist() == list(range(1, len(table) + 1))
    return ordered[0]["SOPInstanceUID"].tolist()


def reasons(skipped: pd.DataFrame) -> dict[str, str]:
    return {os.path.basename(row.path): row.reason for row in skipped.itertuples()}


def test_a_tilted_series_goes_along_its_normal_where_z_goes_back_and_forth():
    angle = np.deg2rad(20)
    normal = np.array([0, np.sin(angle), np.cos(angle)])
    column = np.array([0, np.cos(angle), -np.sin(angle)])
    shifts = np.array([20, -20, 15, -15, 0, 20])  # of the scanned field, within the slice's plane
    positions = np.arange(6)[:, None] * normal + shifts[:, None] * column
    assert (np.diff(positions[:, 2]) < 0).any()
    table = series_of(positions, [[1, 0, 0, *column]] * 6)
    assert order_of(table) == [f"u{i:04d}" for i in range(6)]
    np.testing.assert_allclose(order_slices(table)["position"], np.arange(6), atol=1e-9)


def test_slices_go_from_feet_to_head_however_they_were_acquired_or_described():
    positions = [[0, 0, z] for z in (60, 30, 0, -30)]
    upside_down = [[1, 0, 0, 0, -1, 0]] * 4  # the normal points to the feet
    half = [AXIAL, [1, 0, 0, 0, -1, 0], AXIAL, [1, 0, 0, 0, -1, 0]]  # their sum is zero
    for orientations in ([AXIAL] * 4, upside_down, half):
        assert order_of(series_of(positions, orientations)) == ["u0003", "u0002", "u0001", "u0000"]


@pytest.mark.parametrize(
    ("orientation", "axis"),
    [([0, 1, 0, 0, 0, -1], 0), ([0, -1, 0, 0, 0, -1], 0), ([1, 0, 0, 0, 0, -1], 1)],
)
def test_sagittal_and_coronal_series_go_along_their_own_axis(orientation, axis):
    positions = np.zeros((5, 3))
    positions[:, axis] = [12, -3, 4, 30, -50]
    assert order_of(series_of(positions, [orientation] * 5)) == [
        "u0004", "u0001", "u0002", "u0000", "u0003"
    ]  # fmt: skip


def test_two_orientations_in_one_series_keep_each_ones_order():
    axial, coronal = [[0, 0, z] for z in (3, 1, 2)], [[0, y, 0] for y in (50, 10, 30)]
    table = series_of(axial + coronal, [AXIAL] * 3 + [[1, 0, 0, 0, 0, -1]] * 3)
    ordered = order_of(table)
    assert [uid for uid in ordered if uid < "u0003"] == ["u0001", "u0002", "u0000"]
    assert [uid for uid in ordered if uid >= "u0003"] == ["u0004", "u0005", "u0003"]


def test_the_normal_is_the_mean_over_the_slices_whether_lists_or_texts():
    # Three slices of one plane, one of another, a right angle apart: the mean leans to the three.
    planes = [AXIAL] * 3 + [[1, 0, 0, 0, 0, -1]]  # normals along z and along y
    positions = [[0, 10, 0], [0, 0, 3], [0, 0, 6], [0, 10, 9]]
    table = series_of(positions, planes)
    expected = np.array(positions) @ np.array([0, 1, 3]) / np.sqrt(10)
    texts = table.assign(
        ImageOrientationPatient=["\\".join(map(str, plane)) for plane in planes],
        ImagePositionPatient=[str([str(mm) for mm in position]) for position in positions],
    )
    for given in (table, texts):
        ordered = order_slices(given)
        np.testing.assert_allclose(ordered["position"], np.sort(expected), rtol=1e-12)
        assert ordered["SOPInstanceUID"].tolist() == ["u0001", "u0000", "u0002", "u0003"]


@pytest.mark.parametrize("series", [1, 300, 200_000])  # as one, two and three bytes count
def test_places_are_sorted_as_numpy_sorts_them(series):
    random = np.random.default_rng(0)
    codes = random.integers(0, series, 300_000)
    positions = random.permutation(300_000) - 1e5
    positions[:2] = np.nan, -np.inf
    np.testing.assert_array_equal(_sort_places(codes, positions), np.lexsort((positions, codes)))


def test_equal_positions_go_by_the_name_of_the_slice():
    table = series_of([[0, 0, 5]] * 3 + [[0, 0, 1]] * 2, uids=["c", "a", "b", "z", "y"])
    assert order_of(table) == ["y", "z", "a", "b", "c"]


def test_positions_of_every_form_are_the_same():
    positions = [[-125.0, -102.198, 126.749], [-125.0, -102.198, 121.749]]
    forms = {
        "competition": [str([f"{value:.6f}" for value in position]) for position in positions],
        "dicom": ["\\".join(map(str, position)) for position in positions],
        "blanks": ["  ".join(map(str, position)) for position in positions],
        "both": [" " + " ,\t".join(map(str, position)) for position in positions],
        "arrays": [np.array(position) for position in positions],
        "mixed": [positions[0], "-125.0\\-102.198\\121.749"],
    }
    expected = order_slices(series_of(positions))
    for name, values in forms.items():
        found = order_slices(series_of(positions).assign(ImagePositionPatient=values))
        assert found["position"].tolist() == expected["position"].tolist() == [121.749, 126.749], (
            name
        )


@pytest.mark.parametrize("text", ["1\\2", "1\\2\\3\\4", "", "1,,3", "1 2,3,4"])
def test_a_position_that_is_not_three_numbers_is_refused(text):
    table = series_of([[0, 0, 1], [0, 0, 2]]).assign(ImagePositionPatient=["0\\0\\1", text])
    with pytest.raises(ValueError, match="numbers, not 3"):
        order_slices(table)


def test_a_missing_position_sends_the_series_by_instance_number():
    table = series_of([[0, 0, 9], [0, 0, 5], [0, 0, 1]], InstanceNumber=[1, 10, 9])
    table["ImagePositionPatient"] = ["0\\0\\9", None, "0\\0\\1"]
    assert order_of(table) == ["u0000", "u0002", "u0001"]


def test_missing_keys_and_the_empty_table_do_no_harm():
    table = series_of([[0, 0, 2], [0, 0, 1]]).assign(PatientID=[None, None])
    ordered = order_slices(table)
    assert ordered["series"].unique().tolist() == ["/St/Se"]
    assert ordered["SOPInstanceUID"].tolist() == ["u0001", "u0000"]
    assert order_slices(table[:0])["seq"].tolist() == []


def test_the_competitions_real_series_are_ordered_by_height():
    table = pd.read_csv(shared("data/rsna/slices_dev.csv.gz"))
    ordered = order_slices(table)
    assert ordered["series"].nunique() == 79
    pd.testing.assert_frame_equal(order_slices(shuffle(table)), ordered)
    ties = 0
    for key, series in ordered.groupby("series"):
        assert key == "/".join(
            series.iloc[0][["PatientID", "StudyInstanceUID", "SeriesInstanceUID"]]
        )
        z = [float(ast.literal_eval(text)[2]) for text in series["ImagePositionPatient"]]
        assert (np.diff(z) >= 0).all(), key
        assert series["seq"].tolist() == list(range(1, len(series) + 1))
        for _, tied in series.groupby("position"):
            assert tied["SOPInstanceUID"].is_monotonic_increasing
            ties += len(tied) - 1
    assert ties > 100  # the two interleaved scans among them


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
    assert set(slices) == {"path", "series", "seq", "position", "repaired", *HEADER_COLUMNS}
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
        "lost.dcm": "ImagePositionPatient is missing: InstanceNumber is not known "
        "for the whole series either"
    }


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
    }.items():
        write_slice(tmp_path / name, **tags)
    slices, skipped = index_slices(tmp_path, 1)
    assert [os.path.basename(path) for path in slices["path"]] == ["good.dcm"]
    assert reasons(skipped) == {
        "sop.dcm": "SOPInstanceUID is missing",
        "series.dcm": "SeriesInstanceUID is missing",
        "newline.dcm": "SOPInstanceUID holds characters that are not text",
        "two.dcm": "ImagePositionPatient is not 3 numbers: it holds 2",
        "far.dcm": "ImagePositionPatient cannot be millimetres in a scanner",
        "axes.dcm": "ImageOrientationPatient is not two unit vectors at right angles",
        "flat.dcm": "ImageOrientationPatient is not two unit vectors at right angles",
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


def test_files_cut_short_do_not_turn_the_series_and_are_placed_along_its_normal(tmp_path):
    write_stack(tmp_path)
    expected, _ = index_slices(tmp_path, 1)
    for number in range(4):
        write_cut_short(
            tmp_path / f"x{number}.dcm",
            ImagePositionPatient=[0, 100 * number, 7 + number],
            ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
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
        "a.dcm": "ImagePositionPatient is missing: InstanceNumber is not known "
        "for the whole series either"
    }


def test_a_series_of_which_every_file_is_cut_short_is_placed_by_itself(tmp_path):
    for z in range(3):
        write_cut_short(tmp_path / f"{z}.dcm", ImagePositionPatient=[0, 0, 5 * z])
    write_slice(tmp_path / "other.dcm", SeriesInstanceUID="2")
    slices, skipped = index_slices(tmp_path, 1)
    assert len(slices) == 1
    assert skipped["position"].tolist() == [0, 5, 10]


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


def test_the_wrong_intercept_is_reported(tmp_path):
    write_slice(tmp_path / "1.dcm", np.ones((8, 8), np.uint16), BitsStored=12)
    write_slice(tmp_path / "2.dcm", np.ones((8, 8), np.uint16), BitsStored=16)
    slices, _ = index_slices(tmp_path, 1)
    assert dict(zip(slices["path"].map(os.path.basename), slices["repaired"], strict=True)) == {
        "1.dcm": True,
        "2.dcm": False,
    }


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
    assert reasons(skipped) == {"caf\\udce9.dcm": "file's name is not UTF-8 text: rename it"}
    skipped.to_csv(tmp_path / "skipped.csv")


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

    def measure(read) -> float:
        started = time.process_time()
        read()
        return time.process_time() - started

    bare, ours = (
        min(measure(read) for _ in range(7))
        for read in (
            lambda: [pydicom.dcmread(path, stop_before_pixels=True) for path in paths],
            lambda: index_files(paths, "them", 1),
        )
    )
    assert ours < 1.5 * bare + 0.02  # what the table itself costs


@pytest.mark.slow
def test_the_whole_competition_is_ordered_in_seconds():
    table = pd.read_csv(shared("data/rsna/slices_dev.csv.gz"))
    copies = -(-752_803 // len(table))
    whole = pd.concat(
        [table.assign(SeriesInstanceUID=table["SeriesInstanceUID"] + str(i)) for i in range(copies)]
    )
    started = time.process_time()
    ordered = order_slices(shuffle(whole))
    assert time.process_time() - started < 6
    assert ordered["series"].nunique() == 79 * copies
