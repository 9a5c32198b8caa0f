"""Folds: whole patients, alike in their labels, whatever the order of rows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kit import InputError
from kit.competition import LABELS
from kit.slices.folds import _fill_folds, assign_folds, check_training


@pytest.fixture
def slices():
    """60 training and 10 test patients, of 20 to 40 slices; a third of them bleed."""
    rng = np.random.default_rng(4)
    parts = []
    for patient in range(70):
        count = int(rng.integers(20, 41))
        labels = np.zeros((count, 6), np.int8)
        if patient % 3 == 0:
            kind = patient // 3 % 5
            labels[5:12, kind] = labels[5:12, 5] = 1
        part = pd.DataFrame(labels, columns=list(LABELS))
        part["PatientID"] = f"ID_{patient * 7919 % 1000:03d}"
        part["SOPInstanceUID"] = [f"ID_{patient:03d}_{number}" for number in range(count)]
        part["split"] = "train" if patient < 60 else "test"
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def fold_by_slice(slices, *arguments, **options) -> pd.Series:
    return pd.Series(assign_folds(slices, *arguments, **options), slices["SOPInstanceUID"])


def test_folds_are_whole_patients_and_only_of_the_training_part(slices):
    folds = assign_folds(slices, 5)
    training = (slices["split"] == "train").to_numpy()
    assert (folds[~training] == -1).all()
    assert set(folds[training]) == {0, 1, 2, 3, 4}
    assert (
        slices[training]
        .assign(fold=folds[training])
        .groupby("PatientID")["fold"]
        .nunique()
        .eq(1)
        .all()
    )


def test_every_fold_has_its_share_of_each_bleeding(slices):
    slices = slices.assign(fold=assign_folds(slices, 4))
    train = slices[slices["split"] == "train"]
    shares = train.groupby("fold")[list(LABELS)].mean()
    assert len(shares) == 4
    # Each kind has four training patients: one in every fold.
    patients = train.groupby(["fold", "PatientID"])[list(LABELS[:5])].max().groupby("fold").sum()
    assert (patients == 1).all(axis=None)
    sizes = train.groupby("fold").size()
    assert sizes.max() < 1.2 * sizes.min()


def test_shuffled_rows_and_other_index_give_the_same_folds(slices):
    expected = fold_by_slice(slices, 5)
    shuffled = slices.sample(frac=1, random_state=1)
    pd.testing.assert_series_equal(fold_by_slice(shuffled, 5)[expected.index], expected)
    doubled = slices.set_index(pd.Index([7] * len(slices)))
    pd.testing.assert_series_equal(fold_by_slice(doubled, 5), expected)


def test_the_seed_decides(slices):
    first, again, other = (assign_folds(slices, 5, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_fewer_patients_than_folds_are_refused(slices):
    with pytest.raises(ValueError, match="60 patients cannot be split into 61 folds"):
        assign_folds(slices, 61)


def test_a_fold_table_of_ones_own_is_followed(slices, tmp_path):
    patients = slices["PatientID"].unique()
    given = pd.DataFrame({"PatientID": patients, "fold": np.arange(len(patients)) % 3, "age": 60})
    pd.concat([given, given[:2]]).to_csv(tmp_path / "folds.csv", index=False)
    folds = assign_folds(slices, 3, fold_table=tmp_path / "folds.csv")
    expected = slices["PatientID"].map(given.set_index("PatientID")["fold"])
    np.testing.assert_array_equal(folds, expected.where(slices["split"] == "train", -1))


def test_ids_that_look_like_numbers_keep_their_zeros(slices, tmp_path):
    slices = slices[slices["split"] == "train"].assign(PatientID="007")
    (tmp_path / "folds.csv").write_bytes(b"\xef\xbb\xbfPatientID,fold\r\n007,1\r\n")
    assert set(assign_folds(slices, 2, fold_table=tmp_path / "folds.csv")) == {1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not a CSV file that can be read"),
        ("patient,fold\nP,0\n", "needs the columns PatientID and fold"),
        ("PatientID,fold\nP,0\nP,1\n", "P is in two folds"),
        ("PatientID,fold\nQ,0\n", "names no fold for P"),
        ("PatientID,fold\nP,2\n", "the fold of P is '2', not one of 0 to 1"),
        ("PatientID,fold\nP,-1\n", "the fold of P is '-1', not one of 0 to 1"),
        ("PatientID,fold\nP,0.5\n", "the fold of P is '0.5', not one of 0 to 1"),
        ("PatientID,fold\nP,\n", "the fold of P is '', not one of 0 to 1"),
    ],
)
def test_a_fold_table_that_cannot_be_followed_is_refused_naming_it(
    slices, tmp_path, content, reason
):
    table = tmp_path / "folds.csv"
    table.write_text(content)
    with pytest.raises(ValueError, match=r"folds\.csv: ") as caught:
        assign_folds(slices[:5].assign(PatientID="P"), 2, fold_table=table)
    assert reason in str(caught.value)


def test_a_fold_table_that_is_not_there_is_named(slices, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        assign_folds(slices, 2, fold_table=tmp_path / "none.csv")


def make_patients(**slices: int) -> pd.DataFrame:
    """A training part without bleeding, of so many slices of each patient."""
    patients = [name for name, count in slices.items() for _ in range(count)]
    uids = [f"ID_{number:04d}" for number in range(len(patients))]
    table = pd.DataFrame({"PatientID": patients, "SOPInstanceUID": uids, "split": "train"})
    return table.assign(**dict.fromkeys(LABELS, 0))


@pytest.mark.parametrize("seed", range(4))
def test_no_fold_is_empty_while_there_are_patients_enough(seed):
    """Of very unequal patients the splitter alone leaves folds without any."""
    table = make_patients(a=500, b=1, c=1, d=1, e=2)
    folds = assign_folds(table, 5, seed)
    assert sorted(set(folds)) == [0, 1, 2, 3, 4]
    assert pd.Series(folds).groupby(table["PatientID"]).nunique().eq(1).all()
    shuffled = table.sample(frac=1, random_state=seed)
    np.testing.assert_array_equal(assign_folds(shuffled, 5, seed), folds[shuffled.index])


def test_an_empty_fold_gets_the_smallest_patient_of_the_fold_that_has_most():
    patients = np.array(["a", "a", "b", "c", "c", "d"])
    filled = _fill_folds(np.array([2, 2, 0, 0, 0, 0]), patients, 3)
    assert filled.tolist() == [2, 2, 1, 0, 0, 0]  # fold 0 had b, c and d; b is the first of one


def test_one_fold_needs_no_split():
    assert assign_folds(make_patients(a=2, b=1), 1).tolist() == [0, 0, 0]


def test_what_leaves_no_slice_to_train_on_is_refused_with_the_counts():
    table = make_patients(a=3).assign(fold=[1, 1, 1])
    skipped = pd.DataFrame({"code": ["not a DICOM file"] * 2 + ["no labels"]})
    check_training(Path("data"), table, skipped, ["all"])
    check_training(Path("data"), table, skipped, [0])
    with pytest.raises(InputError, match=r"^data: fold 1 holds out all of the 3 training slices$"):
        check_training(Path("data"), table, skipped, [0, 1])
    sentence = (
        "data: no training slice: 3 slices in the test part, 3 files skipped; "
        "not a DICOM file: 2; no labels: 1"
    )
    with pytest.raises(InputError, match=rf"^{sentence}$"):
        check_training(Path("data"), table.assign(split="test"), skipped, ["all"])
