"""Scans in any form: files, several folders, arrays in memory."""

import numpy as np
import pytest
from dicom_files import write_series

from kit import InputError
from kit.runs.gathering import gather_array, gather_files

VOLUME = np.full((3, 4, 4), -1000, np.int16) + np.arange(3, dtype=np.int16)[:, None, None]


def test_a_list_of_files_and_folders_is_taken_once_each(tmp_path):
    write_series(tmp_path, "1", count=3)
    write_series(tmp_path, "2", count=2)
    files = [str(tmp_path / "1" / "0.dcm"), tmp_path / "1" / "0.dcm", tmp_path / "2"]
    gathered = gather_files(files, workers=0)
    assert gathered.slices["SOPInstanceUID"].tolist() == ["1.2.1.0", "1.2.2.0", "1.2.2.1"]
    assert gathered.described["slices"].tolist() == [1, 2]
    with pytest.raises(FileNotFoundError, match=r"3\.dcm: there is no such folder"):
        gather_files([*files, tmp_path / "1" / "3.dcm"])


def test_the_slices_of_an_array_are_ordered_by_their_positions():
    slices, described, skipped, _ = gather_array(VOLUME, [10, 0, 5])
    assert slices["SOPInstanceUID"].tolist() == ["1", "2", "0"]
    assert slices["position"].tolist() == [0, 5, 10]
    assert [int(one.max()) for one in slices["source"]] == [-999, -998, -1000]
    assert described.loc[0, ["spacing", "slices"]].tolist() == [5, 3]
    assert skipped.empty


def test_without_positions_an_array_stays_in_its_order_and_has_no_spacing():
    slices, described, _, _ = gather_array(VOLUME.astype(float))
    assert slices["SOPInstanceUID"].tolist() == ["0", "1", "2"]
    assert np.isnan(described.loc[0, "spacing"])
    assert {one.dtype for one in slices["source"]} == {np.dtype(np.int16)}
    assert {one.dtype for one in gather_array(VOLUME + 0.5)[0]["source"]} == {np.dtype(np.float32)}


REFUSED = {
    "not slices × rows × columns": (VOLUME[0], None),
    "is not slices": (VOLUME.astype(str), None),
    "need as many positions": (VOLUME, [0, 1]),
    "positions": (VOLUME, [0, 1, np.nan]),
    "do not tell the slices apart": (VOLUME, [0, 5, 5]),
    "none is below -200, as air is": (VOLUME - VOLUME.min(), None),
    "they go from -1000 to 40000": (np.where(VOLUME > -999, 40000, VOLUME.astype(int)), None),
    "some are not finite": (np.where(VOLUME > -999, np.nan, VOLUME), None),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_scan_in_hu_is_refused(reason):
    with pytest.raises(InputError, match=reason):
        gather_array(*REFUSED[reason])
