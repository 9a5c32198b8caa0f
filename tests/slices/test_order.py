"""The order of slices: by hand, and on real series."""

import ast
import time

import numpy as np
import pandas as pd
import pytest
from conftest import shared

from kit.slices.index import order_slices
from kit.slices.order import find_tilted

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


def test_a_slice_without_an_orientation_does_not_tilt_its_series():
    tilted = [1, 0, 0, 0, 0.8, -0.6]  # normal (0, 0.6, 0.8)
    table = series_of([[0, 5 * z, 10 * z] for z in range(3)], [tilted, None, tilted])
    np.testing.assert_allclose(order_slices(table)["position"], [0, 11, 22])
    assert not find_tilted(table).any()
    alone = series_of([[0, 3, 1], [0, 4, 0]], [None, None])
    assert order_slices(alone)["position"].tolist() == [0, 1]  # along z


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


def test_one_missing_position_is_found_by_instance_number_and_turns_nothing_round():
    # The numbers fall from feet to head; between 3 and 5 lies 4, and 7 below 5.
    table = series_of([[0, 0, 9], [0, 0, 0], [0, 0, 5]], InstanceNumber=[3, 4, 5])
    table["ImagePositionPatient"] = ["0\\0\\9", None, "0\\0\\5"]
    assert order_of(table) == ["u0002", "u0001", "u0000"]
    assert order_slices(table)["position"].tolist() == [5, 7, 9]
    table["InstanceNumber"] = [3, 7, 5]
    assert order_of(table) == ["u0001", "u0002", "u0000"]
    assert order_slices(table)["position"].tolist() == [1, 5, 9]


@pytest.mark.parametrize(
    ("numbers", "lost"),
    [
        ([1, 3, 5, 2, 4, 6], 3),  # interleaved: neighbours by number are none by place
        ([1, 2, 3, 4, 5, 6, 99], 6),  # far beyond the others
        ([1, 2, 3, 4, 5, 3], 5),  # another's number
        ([1, 2, 3, 4, 5, None], 5),
    ],
)
def test_a_missing_position_that_no_number_tells_stays_missing(numbers, lost):
    positions = [f"0\\0\\{5 * place}" for place in range(len(numbers))]
    positions[lost] = None
    table = series_of([[0, 0, 0]] * len(numbers), InstanceNumber=numbers)
    ordered = order_slices(table.assign(ImagePositionPatient=positions))
    assert np.isnan(ordered["position"].iloc[-1])
    assert ordered["SOPInstanceUID"].iloc[-1] == f"u{lost:04d}"
    assert ordered["position"].iloc[:-1].is_monotonic_increasing


def test_the_missing_position_is_sought_in_its_own_acquisition():
    positions = ["0\\0\\0", "0\\0\\5", None, "0\\0\\15"] + [f"0\\0\\{90 - z}" for z in range(4)]
    table = series_of([[0, 0, 0]] * 8, InstanceNumber=[1, 2, 3, 4] * 2,
                      AcquisitionNumber=[1] * 4 + [2] * 4)  # fmt: skip
    table["ImagePositionPatient"] = positions
    ordered = order_slices(table)
    assert ordered["SOPInstanceUID"].tolist()[:4] == ["u0000", "u0001", "u0002", "u0003"]
    assert ordered["position"].tolist()[:4] == [0, 5, 10, 15]


def test_where_positions_do_not_tell_instance_numbers_do():
    numbers = [1, 10, 11, 12, 2, 3, 4, 5, 6, 7, 8, 9]
    uids = [f"1.2.{number}" for number in numbers]
    table = series_of([[0, 0, 5]] * 12, uids=uids, InstanceNumber=[*map(str, numbers)])
    assert order_of(table) == [f"1.2.{number}" for number in range(1, 13)]
    assert order_of(table.drop(columns="InstanceNumber")) == [f"1.2.{n}" for n in range(1, 13)]
    falling = table.assign(InstanceNumber=[-number for number in numbers])
    assert order_of(falling) == [f"1.2.{number}" for number in range(12, 0, -1)]


@pytest.mark.parametrize("jitter", [0, 2e-4, -2e-4, 2e-3, -4e-3])
@pytest.mark.parametrize("column", ["AcquisitionNumber", "InstanceNumber"])
def test_two_acquisitions_at_the_same_places_keep_one_order(column, jitter):
    rng = np.random.default_rng(0)
    places = [[0, 0, 5 * z] for z in range(12)]
    again = [[0, 0, 5 * z + jitter * rng.integers(-1, 2)] for z in range(12)]
    number = [1] * 12 + [2] * 12 if column == "AcquisitionNumber" else list(range(24))
    uids = [f"1.2.{n}" for n in rng.permutation(24)]
    table = series_of(places + again, uids=uids, **{column: number})
    expected = [uids[z + 12 * acquisition] for z in range(12) for acquisition in (0, 1)]
    assert order_of(table) == expected


def test_slices_off_the_plane_of_most_are_found():
    def plane(degrees):
        angle = np.deg2rad(degrees)
        return [1, 0, 0, 0, np.cos(angle), -np.sin(angle)]

    def find(*degrees):
        return find_tilted(series_of([[0, 0, 0]] * len(degrees), [plane(d) for d in degrees]))

    assert find(0, 0, 9.9).tolist() == [False] * 3
    assert find(10.1, 0, 0).tolist() == [True, False, False]
    assert find(0, 180, 90, 180).tolist() == [False, False, True, False]  # either side
    assert find(-8, 0, 0, 8).tolist() == [False] * 4
    two = pd.concat([series_of([[0, 0, 0]] * 3, [plane(20)] * 3),
                     series_of([[0, 0, 0]] * 3, [plane(0)] * 3).assign(PatientID="Q")])  # fmt: skip
    assert not find_tilted(two).any()


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
