"""Folds: whole patients, stratified by label, independent of the order of files or rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kit import InputError
from kit.competition import LABELS
from kit.files import open_whole
from kit.progress import format_count


def assign_folds(
    slices: pd.DataFrame, folds: int, seed: int = 0, fold_table: str | Path | None = None
) -> np.ndarray:
    """The fold of each slice, (N,) int; −1 outside the training part.

    Whole patients, stratified by the rarest bleeding each slice shows, whatever the order of the
    rows; no fold is empty. `fold_table` is a CSV with columns PatientID and fold that must name
    every patient. Raises `InputError` if it does not, and if there are fewer patients than folds.
    """
    training = (slices["split"] == "train").to_numpy()
    assigned = np.full(len(slices), -1, dtype=np.int64)
    part = slices.loc[training, ["PatientID", "SOPInstanceUID", *LABELS]]
    if fold_table is not None:
        assigned[training] = _read_folds(fold_table, part["PatientID"], folds)
        return assigned
    if part.empty or folds == 1:
        assigned[training] = 0
        return assigned
    from sklearn.model_selection import StratifiedGroupKFold

    part["PatientID"] = part["PatientID"].fillna("")
    patients = part["PatientID"].nunique()
    if patients < folds:
        raise InputError(f"{format_count(patients, 'patient')} cannot be split into {folds} folds")
    part = part.reset_index(drop=True).sort_values(["PatientID", "SOPInstanceUID"])
    labels = part[list(LABELS)].to_numpy()
    rarest = np.argsort(labels.sum(axis=0), kind="stable")
    strata = np.where(labels.any(axis=1), rarest[labels[:, rarest].argmax(axis=1)], -1)
    # Shuffled here: where older scikit-learn shuffles, it gives patients each other's labels.
    order = np.random.RandomState(seed).permutation(patients)
    drawn = np.argsort(order)[np.unique(part["PatientID"], return_inverse=True)[1]]
    splitter = StratifiedGroupKFold(folds)
    result = np.empty(len(part), dtype=np.int64)
    for fold, (_, held_out) in enumerate(splitter.split(labels, strata, drawn)):
        result[part.index[held_out]] = fold
    assigned[training] = _fill_folds(result, part.sort_index()["PatientID"].to_numpy(), folds)
    return assigned


def _fill_folds(assigned: np.ndarray, patients: np.ndarray, folds: int) -> np.ndarray:
    """Give each empty fold the smallest patient of the fold that has the most patients."""
    sizes = pd.Series(patients).value_counts().sort_index()
    home = pd.Series(assigned, patients).groupby(level=0).first()
    for fold in range(folds):
        if not (home == fold).any():
            fullest = home.value_counts().sort_index().idxmax()
            home[sizes[home == fullest].idxmin()] = fold
    return home.loc[patients].to_numpy()


def check_training(
    source: Path, slices: pd.DataFrame, skipped: pd.DataFrame, folds: list[int | str]
) -> None:
    """Raise `InputError`, with the counts, where one of `folds` would be trained on no slice."""
    training = slices["split"] == "train"
    if not training.any():
        test, left = format_count(len(slices), "slice"), format_count(len(skipped), "file")
        codes = skipped["code"].value_counts()[:3].items()
        reasons = "".join(f"; {code}: {number}" for code, number in codes)
        raise InputError(
            f"{source}: no training slice: {test} in the test part, {left} skipped{reasons}"
        )
    for fold in folds:
        if (slices.loc[training, "fold"] == fold).all():
            held = format_count(int(training.sum()), "training slice")
            raise InputError(f"{source}: fold {fold} holds out all of the {held}")


def _read_folds(fold_table: str | Path, patients: pd.Series, folds: int) -> np.ndarray:
    """Read the fold of each of `patients` from a CSV; `InputError` says what is wrong with it."""
    try:
        with open_whole(fold_table) as file:
            given = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{fold_table}: not a CSV file that can be read: {error}") from error
    if not {"PatientID", "fold"} <= set(given.columns):
        raise InputError(f"{fold_table}: needs the columns PatientID and fold")
    numbers = {str(fold): fold for fold in range(folds)}
    given["fold"] = given["fold"].str.strip()
    wrong = ~given["fold"].isin(list(numbers))
    if wrong.any():
        row = given[wrong].iloc[0]
        raise InputError(
            f"{fold_table}: the fold of {row['PatientID']} is {row['fold']!r}, "
            f"not one of 0 to {folds - 1}"
        )
    given = given.drop_duplicates(["PatientID", "fold"])
    repeated = given["PatientID"].duplicated()
    if repeated.any():
        raise InputError(f"{fold_table}: {given['PatientID'][repeated].iloc[0]} is in two folds")
    found = patients.map(given.set_index("PatientID")["fold"].map(numbers))
    if found.isna().any():
        raise InputError(f"{fold_table}: names no fold for {patients[found.isna()].iloc[0]}")
    return found.to_numpy(np.int64)
