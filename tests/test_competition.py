"""The label file in the forms it comes in: line endings, gzip, zip, and what is refused."""

import gzip
import os
import zipfile

import numpy as np
import pandas as pd
import pytest

from kit.competition import LABELS, LabelError, read_labels


def write_labels(path, rows, newline="\n", bom=""):
    path.write_bytes((bom + newline.join(["ID,Label", *rows]) + newline).encode())
    return path


def label_rows(image, values):
    return [f"{image}_{label},{value}" for label, value in zip(LABELS, values, strict=True)]


@pytest.mark.parametrize(("newline", "bom"), [("\n", ""), ("\r\n", ""), ("\n", "\ufeff")])
def test_labels_are_read_from_any_line_ending_and_equal_duplicates_dropped(tmp_path, newline, bom):
    rows = label_rows("ID_b", [0, 1, 0, 0, 0, 1]) + label_rows("ID_a", [0] * 6)
    labels = read_labels(write_labels(tmp_path / "l.csv", rows + rows[:6], newline, bom))
    assert list(labels.index) == ["ID_b", "ID_a"]
    assert labels.loc["ID_b"].tolist() == [0, 1, 0, 0, 0, 1]
    assert labels.to_numpy().dtype == np.int8


@pytest.mark.parametrize("ending", [".csv.gz", ".zip"])
def test_packed_labels_are_read(tmp_path, ending):
    rows = label_rows("ID_a", [1, 0, 0, 0, 0, 1])
    table = pd.DataFrame([row.split(",") for row in rows], columns=["ID", "Label"])
    table.to_csv(tmp_path / f"l{ending}", index=False)
    assert read_labels(tmp_path / f"l{ending}").loc["ID_a", "epidural"] == 1


def test_a_packed_file_that_inflates_without_end_or_is_cut_short_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("kit.competition.MAX_MEMBER_BYTES", 1000)
    bomb, cut = tmp_path / "bomb.csv.gz", tmp_path / "cut.csv.gz"
    bomb.write_bytes(gzip.compress(b"ID,Label\n" + b"0" * 2000))
    cut.write_bytes(gzip.compress(os.urandom(200))[:150])
    with pytest.raises(LabelError, match=r"bomb\.csv\.gz: inflates to more than"):
        read_labels(bomb)
    with pytest.raises(LabelError, match=r"cut\.csv\.gz: not a CSV file that can be read"):
        read_labels(cut)


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path):
    path = tmp_path / "l.csv"
    with open(path, "wb") as file:
        file.write(b"ID,Label\n")
        file.truncate(1 << 40)
    with pytest.raises(LabelError, match=r"l\.csv: .*larger than any text or table"):
        read_labels(path)


def write_zip(path, members: dict[str, bytes], locked: bool = False):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    if locked:
        content = bytearray(path.read_bytes())
        content[6] |= 1  # the flag of encryption, in the member's own header and in the directory
        content[content.rindex(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(content)
    return path


LABELLED = "\n".join(["ID,Label", *label_rows("ID_a", [1, 0, 0, 0, 0, 1])]).encode()


def test_what_a_mac_adds_to_a_zip_is_not_taken_for_a_second_file(tmp_path):
    more = {"__MACOSX/._l.csv": b"x", "__MACOSX/l.csv": b"x", "in/.DS_Store": b"x"}
    path = write_zip(tmp_path / "l.zip", {"in/l.csv": LABELLED, **more})
    assert read_labels(path).loc["ID_a", "epidural"] == 1
    path = write_zip(tmp_path / "two.zip", {"l.csv": LABELLED, "m.csv": LABELLED})
    with pytest.raises(LabelError, match=r"two\.zip: holds 2 files, not one"):
        read_labels(path)


def test_a_zip_that_cannot_be_unpacked_is_refused_by_its_name(tmp_path, monkeypatch):
    locked = write_zip(tmp_path / "locked.zip", {"l.csv": LABELLED}, locked=True)
    with pytest.raises(LabelError, match=r"locked\.zip: not a CSV file .*encrypted"):
        read_labels(locked)
    monkeypatch.setattr("kit.files.MAX_MEMBER_BYTES", 10)
    bomb = write_zip(tmp_path / "bomb.zip", {"l.csv": LABELLED})
    with pytest.raises(LabelError, match=r"bomb\.zip: not a CSV file .*inflates to"):
        read_labels(bomb)


def test_a_file_that_is_not_there_stays_the_error_that_it_is(tmp_path):
    for name in ("none.csv", "none.zip"):
        with pytest.raises(FileNotFoundError) as caught:
            read_labels(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_line_that_is_named_is_that_of_an_editor_whatever_lines_are_blank(tmp_path, newline):
    rows = label_rows("ID_a", [0] * 6)
    rows = ["", *rows[:3], "", *rows[3:5], "ID_a_any,x"]
    with pytest.raises(LabelError, match=r"line 9 \('ID_a_any'\)"):
        read_labels(write_labels(tmp_path / "l.csv", rows, newline))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (label_rows("ID_a", [0, 1, 0, 0, 0, 0]), "ID_a: `any` contradicts"),
        (label_rows("ID_a", [0, 0.5, 0, 0, 0, 1]), "ID_a has a label that is not 0 or 1"),
        ([*label_rows("ID_a", [0] * 6), "ID_a_any,1"], "line 8 .*occurs twice with different"),
        (label_rows("ID_a", [0] * 6)[:5], "row ID_a_any is missing"),
        ([*label_rows("ID_a", [0] * 6), "_any,1"], "line 8 .*names no image"),
    ],
)
def test_contradictory_labels_are_refused_naming_the_row(tmp_path, rows, reason):
    with pytest.raises(LabelError, match=reason):
        read_labels(write_labels(tmp_path / "l.csv", rows))
