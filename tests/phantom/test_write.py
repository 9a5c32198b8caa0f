"""The files of the synthetic competition: layout, tags, encodings, quirks and labels."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

import kit.phantom.write as phantom
from kit.competition import LABELS, read_labels, read_submission
from kit.phantom.plan import plan_patients
from kit.phantom.scan import render_patient
from kit.phantom.write import write_phantom

PATIENTS, SIZE, SEED = 24, 48, 1

# What a file of the competition holds, beside the file meta information.
TAGS = {
    *("SOPInstanceUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"),
    *("StudyID", "ImagePositionPatient", "ImageOrientationPatient", "SamplesPerPixel"),
    *("PhotometricInterpretation", "Rows", "Columns", "PixelSpacing", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "WindowCenter", "WindowWidth"),
    *("RescaleIntercept", "RescaleSlope", "PixelData"),
}

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR UI")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("phantom") / "competition"
    write_phantom(directory, patients=PATIENTS, size=SIZE, seed=SEED, workers=1)
    return directory


@pytest.fixture(scope="module")
def files(folder) -> dict[str, pydicom.Dataset]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Invalid value for VR UI")
        return {path.stem: pydicom.dcmread(path) for path in sorted(folder.glob("*/*.dcm"))}


@pytest.fixture(scope="module")
def headers(folder, files) -> pd.DataFrame:
    """One row a file, feet to head within each series; `z` is the height along the normal."""
    rows = []
    for stem, file in files.items():
        axes = np.array(file.ImageOrientationPatient, float).reshape(2, 3)
        z = np.cross(*axes) @ np.array(file.ImagePositionPatient, float)
        test = (folder / "stage_2_test" / f"{stem}.dcm").exists()
        ids = str(file.PatientID), str(file.StudyInstanceUID), str(file.SeriesInstanceUID)
        rows.append((stem, *ids, z, axes[1, 2], test))
    columns = ["id", "patient", "study", "series", "z", "tilt", "test"]
    return pd.DataFrame(rows, columns=columns).sort_values(["series", "z"]).set_index("id")


def test_the_layout_is_kaggles_and_the_mark_of_the_phantom(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "PHANTOM.txt",
        "stage_2_sample_submission.csv",
        "stage_2_test",
        "stage_2_test_truth.csv",
        "stage_2_train",
        "stage_2_train.csv",
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["competition"]
    for path in folder.glob("*/*"):
        assert path.suffix == ".dcm"
        assert len(path.stem) == 12
        assert int(path.stem.removeprefix("ID_"), 16) < 16**9
    assert "Synthetic heads" in (folder / "PHANTOM.txt").read_text()


def test_the_csv_files_name_exactly_the_files_of_their_part(folder, headers):
    train = read_labels(folder / "stage_2_train.csv")
    truth = read_labels(folder / "stage_2_test_truth.csv")
    sample = read_submission(folder / "stage_2_sample_submission.csv")
    assert sorted(train.index) == sorted(headers.index[~headers["test"]])
    assert sorted(truth.index) == sorted(headers.index[headers["test"]])
    assert list(sample.index) == list(truth.index)
    assert (sample == 0.5).all(axis=None)


def test_any_is_the_or_of_the_five_in_both_parts(folder):
    for name in ("stage_2_train.csv", "stage_2_test_truth.csv"):
        long = pd.read_csv(folder / name).drop_duplicates()
        wide = long.assign(image=long["ID"].str.slice(0, 12), label=long["ID"].str.slice(13)).pivot(
            index="image", columns="label", values="Label"
        )
        assert (wide["any"] == wide[list(LABELS[:5])].max(axis=1)).all()
        assert 0 < wide["any"].mean() < 1


def test_four_images_are_listed_twice_with_equal_labels(folder):
    rows = pd.read_csv(folder / "stage_2_train.csv")
    again = rows[rows.duplicated("ID")]
    assert len(again) == 24
    assert again["ID"].str.slice(0, 12).nunique() == 4
    assert rows.groupby("ID")["Label"].nunique().max() == 1


def test_a_sixth_of_the_patients_is_the_test_part_and_no_patient_is_in_both(headers):
    parts = headers.groupby("patient")["test"].agg(["min", "max"])
    assert (parts["min"] == parts["max"]).all()
    assert len(parts) == PATIENTS
    assert parts["max"].sum() == PATIENTS / 6


def test_every_file_holds_the_real_files_tags_and_no_name(files):
    for stem, file in files.items():
        assert {element.keyword for element in file} == TAGS
        assert file.SOPInstanceUID == file.file_meta.MediaStorageSOPInstanceUID == stem
        for uid in (file.PatientID, file.StudyInstanceUID, file.SeriesInstanceUID):
            assert uid.startswith("ID_")
        assert (file.Rows, file.Columns) == (SIZE, SIZE)
        assert file.StudyID == ""


def test_the_files_forms_vary_as_the_real_ones_do(files):
    forms = Counter(
        (file.file_meta.TransferSyntaxUID.name, file.BitsStored, file.PixelRepresentation)
        for file in files.values()
    )
    assert set(forms) == {
        ("Explicit VR Little Endian", 16, 1),
        ("Explicit VR Little Endian", 12, 0),
        ("Implicit VR Little Endian", 16, 1),
        ("Implicit VR Little Endian", 12, 0),
    }
    assert {int(file.RescaleIntercept) for file in files.values()} == {-1024, -1000, 1}
    windows = {str(file["WindowCenter"].value) for file in files.values()}
    assert {"30", "35.000000", "[00036, 00036]"} <= windows


def test_signed_files_are_padded_outside_the_field_of_view(files):
    for file in files.values():
        if file.PixelRepresentation and len(file.PixelData) == 2 * SIZE**2:
            assert file.pixel_array[0, 0] == file.pixel_array[-1, -1] == -2000
            assert file.pixel_array[SIZE // 2, 0] > -100


def test_one_file_of_each_part_is_truncated_behind_a_good_header(folder, files, headers):
    short = [stem for stem, file in files.items() if len(file.PixelData) < 2 * SIZE**2]
    assert sorted(headers.loc[short, "test"]) == [False, True]
    for stem in short:
        assert len(files[stem].PixelData) == pytest.approx(0.3 * 2 * SIZE**2, rel=0.01)
        with pytest.raises(ValueError, match="less than expected"):
            _ = files[stem].pixel_array
        seq = headers[headers["series"] == headers.loc[stem, "series"]].index.get_loc(stem)
        assert 5 < seq < 55  # it has neighbours to be filled from


def test_one_training_file_has_the_wrong_intercept_and_the_known_repair_is_right(files, headers):
    wrong = [stem for stem, file in files.items() if file.RescaleIntercept > -100]
    assert len(wrong) == 1
    file = files[wrong[0]]
    assert not headers.loc[wrong[0], "test"]
    assert (file.BitsStored, file.PixelRepresentation) == (12, 0)
    values = file.pixel_array.astype(int) + 1000
    repaired = np.where(values >= 4096, values - 4096, values) - 1000
    series = headers[headers["series"] == headers.loc[wrong[0], "series"]]
    at = series.index.get_loc(wrong[0])
    below, above = (_hounsfield(files[series.index[at + step]]) for step in (-1, 1))
    assert np.median(np.abs(repaired - (below + above) / 2)) < 25
    assert np.median(np.abs(_hounsfield(file) - (below + above) / 2)) > 500


def test_some_series_hold_pairs_at_equal_positions_and_some_variable_spacing(headers):
    paired, variable = 0, 0
    for _, series in headers.groupby("series"):
        steps = np.diff(series["z"])
        assert (steps >= -1e-6).all()
        if np.isclose(steps, 0, atol=1e-5).any():
            paired += 1
            assert np.isclose(steps[::2], 0, atol=1e-5).all()
            assert (steps[1::2] > 2).all()
        elif np.ptp(steps) > 0.1:
            variable += 1
    assert paired >= 1
    assert variable >= 3


def test_the_orientation_in_the_files_is_a_rotation_about_the_left_right_axis(files, headers):
    assert (headers["tilt"] != 0).any()
    for file in files.values():
        row, column = np.array(file.ImageOrientationPatient, float).reshape(2, 3)
        assert row == pytest.approx([1, 0, 0])
        assert np.linalg.norm(column) == pytest.approx(1, abs=1e-5)


def test_some_patients_have_two_studies_of_the_same_head(headers):
    studies = headers.groupby("patient")["study"].nunique()
    assert studies.max() == 2
    assert 0 < (studies == 2).mean() < 0.2
    assert headers.groupby("series")["study"].nunique().max() == 1


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(tmp_path):
    for name, workers in (("one", 1), ("again", 1), ("two", 2)):
        write_phantom(tmp_path / name, patients=3, size=32, seed=5, workers=workers)
    one, again, two = (_digests(tmp_path / name) for name in ("one", "again", "two"))
    assert len(one) > 60
    assert one == again == two


def test_another_seed_gives_other_ids_and_other_heads(folder, tmp_path):
    write_phantom(tmp_path / "other", patients=3, size=SIZE, seed=SEED + 1, workers=1)
    names = {path.name for path in (tmp_path / "other").glob("*/*.dcm")}
    assert names
    assert names.isdisjoint(path.name for path in folder.glob("*/*.dcm"))


def test_a_rendered_series_is_what_the_files_hold(files, headers):
    patient = plan_patients(PATIENTS, SEED)[4]
    series = render_patient(patient, SIZE)[0]
    assert not patient.truncated
    for k, slice_id in enumerate(series.slice_ids):
        file = files[slice_id]
        positions = np.array(file.ImagePositionPatient, float)
        assert positions == pytest.approx(series.positions[k], abs=1e-5)
        inner = np.s_[SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4]
        np.testing.assert_array_equal(_hounsfield(file)[inner], series.hounsfield[k][inner])
    assert list(series.slice_ids) == list(headers[headers["series"] == patient.series_ids[0]].index)


def test_nothing_is_written_over_or_beside_what_is_there(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="mine already exists and is not an empty folder"):
        write_phantom(tmp_path / "mine", patients=3, size=32)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    write_phantom(tmp_path / "empty", patients=3, size=32, workers=1)
    assert (tmp_path / "empty" / "stage_2_train.csv").exists()


def test_a_failed_run_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(phantom, "_write_csvs", fail)
    with pytest.raises(OSError, match="disk full"):
        write_phantom(tmp_path / "p", patients=3, size=32, workers=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("patients", "size"), [(2, 64), (3, 16)])
def test_a_phantom_too_small_to_hold_its_oddities_is_refused(tmp_path, patients, size):
    with pytest.raises(ValueError, match="needs 3 patients and 32 pixels"):
        write_phantom(tmp_path / "p", patients=patients, size=size)


def test_writing_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_phantom(tmp_path / "p", patients=3, size=32, workers=1)


def _hounsfield(file: pydicom.Dataset) -> np.ndarray:
    return file.pixel_array.astype(int) * int(file.RescaleSlope) + int(file.RescaleIntercept)


def _digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*.*")
        if path.is_file()
    }
