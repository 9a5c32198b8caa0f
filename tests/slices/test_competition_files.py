"""The competition's data in every layout that occurs give one and the same table."""

import os
import shutil
import zipfile

import numpy as np
import pandas as pd
import pydicom
import pytest

from kit.competition import LABELS
from kit.phantom.write import write_phantom
from kit.slices.competition_files import find_competition, index_competition


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    directory = tmp_path_factory.mktemp("layout") / "phantom"
    write_phantom(directory, patients=12, size=64, seed=5, workers=1)
    return directory


@pytest.fixture(scope="module")
def indexed(phantom):
    return index_competition(phantom, workers=1)


def link(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


def without_paths(tables) -> list[pd.DataFrame]:
    slices, skipped = tables
    names = slices["path"].map(os.path.basename)
    parts = [slices.assign(path=names), skipped.assign(path=skipped["path"].map(os.path.basename))]
    return [part.sort_values("path", ignore_index=True) for part in parts]


def assert_same(found, expected):
    for one, other in zip(without_paths(found), without_paths(expected), strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_every_file_is_a_row_of_the_table_or_skipped(phantom, indexed):
    slices, skipped = indexed
    files = {str(path) for path in phantom.glob("stage_2_*/*.dcm")}
    assert set(slices["path"]) | set(skipped["path"]) == files
    assert len(slices) + len(skipped) == len(files)
    assert skipped["reason"].str.startswith("pixel data is cut short").tolist() == [True, True]
    assert slices["repaired"].sum() == 1


def test_split_and_labels_are_those_of_the_files(phantom, indexed):
    slices, _ = indexed
    is_test = slices["path"].str.contains("/stage_2_test/")
    assert (slices["split"] == np.where(is_test, "test", "train")).all()
    assert (slices.loc[is_test, list(LABELS)] == -1).all(axis=None)
    assert slices.dtypes[list(LABELS)].eq("int8").all()
    text = pd.read_csv(phantom / "stage_2_train.csv").drop_duplicates().set_index("ID")["Label"]
    train = slices[~is_test]
    for label in LABELS:
        expected = text[[f"{name}_{label}" for name in train["SOPInstanceUID"]]]
        np.testing.assert_array_equal(train[label], expected, label)
    assert 0 < train["any"].mean() < 1


def test_the_order_is_that_of_the_heads_heights(indexed):
    slices, _ = indexed
    for _, series in slices.groupby("series", sort=False):
        heights = [pydicom.dcmread(path).ImagePositionPatient[2] for path in series["path"]]
        assert (np.diff(heights) >= 0).all()
        assert series["seq"].tolist() == list(range(1, len(series) + 1))


def test_a_mirrors_folder_names_change_nothing(phantom, indexed, tmp_path):
    for part in ("train", "test"):
        link(phantom / f"stage_2_{part}", tmp_path / f"stage_2_{part}_images")
        for file in phantom.glob("*.csv"):
            shutil.copy(file, tmp_path)
    assert_same(index_competition(tmp_path, 1), indexed)


@pytest.mark.parametrize("labels", ["inside", "above"])
def test_an_extra_folder_around_the_data_changes_nothing(phantom, indexed, tmp_path, labels):
    inner = tmp_path / "rsna-intracranial-hemorrhage-detection" / "rsna"
    (tmp_path / "another").mkdir()
    for part in ("train", "test"):
        link(phantom / f"stage_2_{part}", inner / f"stage_2_{part}")
    for file in phantom.glob("*.csv"):
        shutil.copy(file, inner if labels == "inside" else tmp_path)
    assert_same(index_competition(tmp_path, 1), indexed)
    sample = find_competition(tmp_path).sample
    assert os.path.basename(sample) == "stage_2_sample_submission.csv"


@pytest.mark.parametrize("prefix", ["", "rsna-intracranial-hemorrhage-detection/"])
def test_the_zip_is_indexed_without_unpacking(phantom, indexed, tmp_path, prefix):
    # A name above the archive that is also a part's name must not confuse the parts.
    path = tmp_path / "stage_2_train" / "rsna.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(phantom.rglob("*")):
            archive.write(file, prefix + str(file.relative_to(phantom)))
    before = sorted(tmp_path.rglob("*"))
    found = index_competition(path, 1)
    assert_same(found, indexed)
    assert found[0]["path"].str.startswith(f"{path}/{prefix}stage_2_t").all()
    assert sorted(tmp_path.rglob("*")) == before


def test_reading_in_several_processes_changes_nothing(phantom, indexed):
    found = index_competition(phantom, workers=2)
    for one, other in zip(found, indexed, strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_missing_and_extra_labels_are_listed(phantom, indexed, tmp_path):
    slices, _ = indexed
    train = slices[slices["split"] == "train"]
    gone, series = train["SOPInstanceUID"].iloc[1], train["series"].iloc[1]
    for part in ("train", "test"):
        link(phantom / f"stage_2_{part}", tmp_path / f"stage_2_{part}")
    rows = (phantom / "stage_2_train.csv").read_text().splitlines()
    rows = [row for row in rows if not row.startswith(f"{gone}_")]
    rows += [f"ID_extra_{label},0" for label in LABELS]
    (tmp_path / "stage_2_train.csv").write_text("\n".join(rows) + "\n")
    found, refused = index_competition(tmp_path, 1)
    assert len(found) == len(slices) - 1
    new = refused[~refused["reason"].str.startswith("pixel data")].set_index("SOPInstanceUID")
    assert new["reason"].to_dict() == {
        gone: "no labels in stage_2_train.csv",
        "ID_extra": "in stage_2_train.csv, but there is no readable file of it",
    }
    rest = found.loc[found["series"] == series, "seq"].tolist()
    assert rest == list(range(1, len(rest) + 1))


def test_what_is_missing_is_named(phantom, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder or zip"):
        index_competition(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="neither stage_2_train/ nor stage_2_test/"):
        index_competition(tmp_path)
    link(phantom / "stage_2_train", tmp_path / "stage_2_train")
    with pytest.raises(FileNotFoundError, match=r"stage_2_train\.csv is missing"):
        index_competition(tmp_path)


def test_the_test_part_alone_needs_no_labels(phantom, tmp_path):
    link(phantom / "stage_2_test", tmp_path / "stage_2_test")
    slices, skipped = index_competition(tmp_path, 1)
    assert (slices["split"] == "test").all()
    assert (slices[list(LABELS)] == -1).all(axis=None)
    assert len(skipped) == 1


def test_a_folder_that_holds_nothing_but_the_downloaded_zip_is_read(small_data, tmp_path):
    shutil.make_archive(str(tmp_path / "data" / "competition"), "zip", small_data)
    found = find_competition(tmp_path / "data")
    expected = find_competition(small_data)
    assert len(found.train) == len(expected.train)
    assert found.sample == f"{tmp_path}/data/competition.zip/stage_2_sample_submission.csv"


@pytest.mark.parametrize("ending", [".zip", ".gz"])
def test_csv_files_as_kaggle_packs_them_are_found_and_read(phantom, indexed, tmp_path, ending):
    for part in ("train", "test"):
        link(phantom / f"stage_2_{part}", tmp_path / f"stage_2_{part}")
    for name in ("stage_2_train.csv", "stage_2_sample_submission.csv"):
        pd.read_csv(phantom / name).to_csv(tmp_path / (name + ending), index=False)
    found = find_competition(tmp_path)
    assert found.labels == f"{tmp_path}/stage_2_train.csv{ending}"
    assert found.sample == f"{tmp_path}/stage_2_sample_submission.csv{ending}"
    assert_same(index_competition(tmp_path, 1), indexed)


def test_a_packed_csv_beside_the_downloaded_zip_is_not_taken_for_the_data(small_data, tmp_path):
    shutil.make_archive(str(tmp_path / "competition"), "zip", small_data)
    with zipfile.ZipFile(tmp_path / "stage_2_train.csv.zip", "w") as archive:
        archive.write(small_data / "stage_2_train.csv", "stage_2_train.csv")
    assert len(find_competition(tmp_path).train) == len(find_competition(small_data).train)
