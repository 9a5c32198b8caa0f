"""The tables of a run: what was written is read, and what is not of kit is refused by name."""

import json

import numpy as np
import pandas as pd
import pytest

from kit import InputError
from kit.competition import LABELS
from kit.ensemble import name_columns
from kit.runs.directory import Run, RunError
from kit.runs.tables import (
    read_members,
    read_placed,
    read_predicted,
    read_skipped,
    read_slices,
    read_table,
    write_frame,
    write_guarded,
)

SLICES = pd.DataFrame(
    {
        "path": ["a.dcm", "b.dcm"], "repaired": [False, True], "SOPInstanceUID": ["1", "2"],
        "PatientID": ["p", None], "StudyInstanceUID": ["s", "s"], "SeriesInstanceUID": ["r", "r"],
        "ImagePositionPatient": [None, None], "series": ["p/s/r", "p/s/r"], "seq": [1, 2],
        "position": [0.0, 5.0], "split": ["train", "test"], "fold": [0, -1],
        **{label: np.array([0, -1], np.int8) for label in LABELS},
    }
)  # fmt: skip


@pytest.fixture
def run(tmp_path):
    write_frame(Run(tmp_path).slices, SLICES)
    return Run(tmp_path)


def test_a_slice_table_is_read_as_it_was_written(run):
    pd.testing.assert_frame_equal(read_slices(run), SLICES, check_dtype=False)
    pd.testing.assert_frame_equal(read_placed(run.slices), SLICES, check_dtype=False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"path": None}, "row 1 has no path"),
        ({"path": [1, 2]}, "the column path holds int64 values"),
        ({"SOPInstanceUID": [b"1", b"2"]}, "the column SOPInstanceUID holds"),
        ({"position": ["0", "5"]}, "the column position holds"),
        ({"position": [0.0, np.inf]}, "row 2 has no position"),
        ({"fold": [True, False]}, "the column fold holds bool values"),
        ({"repaired": [0, 1]}, "the column repaired holds int64 values"),
        ({"split": ["train", "tset"]}, "split has other values"),
        ({"any": [0, 7]}, "any has other values"),
    ],
)
def test_a_slice_table_with_other_values_is_refused_by_name(run, changes, reason):
    write_frame(run.slices, SLICES.assign(**changes))
    with pytest.raises(RunError, match=rf"slices\.parquet: {reason}"):
        read_slices(run)


@pytest.mark.parametrize("name", ["split", "PatientID", "any"])
def test_a_column_that_is_missing_is_named(run, name):
    write_frame(run.slices, SLICES.drop(columns=name))
    with pytest.raises(RunError, match=rf"slices\.parquet: the column {name} is missing"):
        read_slices(run)


def test_identities_in_a_csv_stay_texts_whatever_they_look_like(tmp_path):
    skipped = pd.DataFrame(
        {
            "path": ["1", "NA", "null"], "reason": ["x", "y", "z"],
            "SOPInstanceUID": ["007", "1e5", None], "series": ["nan", None, None],
            "position": [1.5, np.nan, -2.25],
            "Rows": [64, 64, 64],
        }
    )  # fmt: skip
    write_frame(tmp_path / "skipped.csv", skipped)
    before = (tmp_path / "skipped.csv").read_bytes()
    found = read_skipped(tmp_path / "skipped.csv")
    for name in ("path", "SOPInstanceUID", "series", "position"):
        assert found[name].astype(object).where(found[name].notna(), None).tolist() == (
            skipped[name].astype(object).where(skipped[name].notna(), None).tolist()
        )
    write_frame(tmp_path / "skipped.csv", found)
    assert (tmp_path / "skipped.csv").read_bytes() == before


def test_predictions_are_indexed_by_their_slices(tmp_path):
    table = pd.DataFrame({"SOPInstanceUID": ["1", "2"], **dict.fromkeys(LABELS, 0.25)})
    write_frame(tmp_path / "p.parquet", table)
    (found,) = read_members([tmp_path / "p.parquet"])
    assert found.loc["2"].to_dict() == dict.fromkeys(LABELS, 0.25)
    write_frame(tmp_path / "p.parquet", table.assign(any=[0.5, np.nan]))
    with pytest.raises(RunError, match=r"p\.parquet: row 2 has no any"):
        list(read_members([tmp_path / "p.parquet"]))


def test_of_the_test_part_no_truth_is_asked(small_run, tmp_path):
    table = read_predicted(small_run.test)
    assert set(name_columns("bag")) <= set(table)
    write_frame(tmp_path / "oof.parquet", table)
    with pytest.raises(RunError, match=r"oof\.parquet: the column fold is missing"):
        read_predicted(tmp_path / "oof.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\x00" * 100, json.dumps({}).encode()])
def test_what_is_no_table_is_refused_by_name(run, content):
    run.slices.write_bytes(content)
    with pytest.raises(RunError, match=r"slices\.parquet: not a table that can be read"):
        read_slices(run)


TEXTS = [
    "007", "NA", "nan", "None", "<NA>", "True", "1e5", "0x10", "1_000", "00", "1.0", "inf", "", '"',
    "'=x", "=1+1", "-5", "+1", "@a", "''", "'", "' =x", "\'\'\'-x", "=\n1", "a,b", 'a"b', "a\nb",
    "é", "１２",
]  # fmt: skip


def test_every_text_comes_back_as_it_was(tmp_path):
    columns = ("PatientID", "SeriesDescription", "any_SOPInstanceUID", "reason", "warnings")
    table = pd.DataFrame({**dict.fromkeys(columns, TEXTS), "any": 0.25, "repaired": True})
    write_guarded(tmp_path / "p.csv", table)
    found = read_table(tmp_path / "p.csv")
    assert {name: found[name].tolist() for name in columns} == dict.fromkeys(columns, TEXTS)
    assert (found["any"].unique(), found["repaired"].unique()) == ([0.25], [True])


def test_a_table_without_rows_has_its_columns(tmp_path):
    columns = ["path", "reason", "StudyInstanceUID", "any", "repaired"]
    write_guarded(tmp_path / "p.csv", pd.DataFrame(columns=columns))
    found = read_table(tmp_path / "p.csv")
    assert (found.columns.tolist(), len(found)) == (columns, 0)
    assert pd.api.types.is_numeric_dtype(found["any"])
    assert not pd.api.types.is_numeric_dtype(found["path"])
    (tmp_path / "p.csv").write_text("")
    with pytest.raises(InputError, match=r"p\.csv: not a table that can be read: No columns"):
        read_table(tmp_path / "p.csv")


def test_a_long_instance_number_is_not_rounded_where_another_is_missing(tmp_path):
    numbers = [1234567.0, np.nan, 2147483647.0]
    write_guarded(tmp_path / "p.csv", pd.DataFrame({"any_InstanceNumber": numbers, "any": 0.5}))
    assert (tmp_path / "p.csv").read_text().split() == [
        "any_InstanceNumber,any", "1234567,0.5", ",0.5", "2147483647,0.5"
    ]  # fmt: skip
    np.testing.assert_array_equal(read_table(tmp_path / "p.csv")["any_InstanceNumber"], numbers)
