"""The label files of public sets, and how their names are found in predictions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from kit import InputError
from kit.competition import LABELS, read_labels
from kit.evaluation.inputs import Labels, Predictions, make_labels, read_columns, read_labels_table

# CQ500's findings in our order; ICH is its "any".
_CQ500 = dict(zip(LABELS, ("EDH", "IPH", "IVH", "SAH", "SDH", "ICH"), strict=True))
_CQ500_NAME = r"CQ500\W*CT\W*(\d+)"  # in the folders and headers: CQ500CT12, CQ500-CT-12
_READERS = 3


class Preset(NamedTuple):
    """How a set's labels are read, and what of the predictions is adapted to its names."""

    read: Callable[[Path, dict[str, str] | None], Labels]
    adapt: Callable[[Predictions], Predictions]


def measure_agreement(votes: np.ndarray) -> float:
    """Measure Fleiss' kappa (Psychological Bulletin 1971;76:378) of 0/1 `votes` (N, readers).

    NaN where all votes are equal, for which it is not defined.
    """
    votes = np.asarray(votes, np.float64)
    readers = votes.shape[1]
    counts = np.stack([votes.sum(axis=1), readers - votes.sum(axis=1)], axis=1)
    observed = ((counts**2).sum(axis=1) - readers).mean() / (readers * (readers - 1))
    expected = (counts.mean(axis=0) / readers) ** 2 @ np.ones(2)
    return float((observed - expected) / (1 - expected)) if expected < 1 else np.nan


def _read_cq500(path: Path, columns: dict[str, str] | None) -> Labels:
    """Read CQ500's `reads.csv`: the majority of three readers, one row a patient."""
    table = read_columns(path, columns)
    needed = [f"R{reader + 1}:{name}" for reader in range(_READERS) for name in _CQ500.values()]
    for column in ("name", *needed):
        if column not in table:
            raise InputError(f"{path}: no column {column!r}, as CQ500's reads.csv has")
    kept = table[[name for name in table if not re.match(r"R\d:", name)]].copy()
    kept["PatientID"] = [_name_cq500(name) or name for name in table["name"]]
    agreement = {}
    for label, name in _CQ500.items():
        votes = table[[f"R{reader + 1}:{name}" for reader in range(_READERS)]]
        votes = votes.apply(pd.to_numeric, errors="coerce")
        wrong = ~votes.isin([0, 1]).all(axis=1)
        if wrong.any():
            patient = table["name"][wrong].iloc[0]
            raise InputError(f"{path}: {patient}: a reading of {name} is not 0 or 1")
        agreement[label] = measure_agreement(votes.to_numpy())
        kept[label] = (votes.sum(axis=1) * 2 > _READERS).astype(np.float64)
    labels = make_labels(path, kept, ("The reference is the majority of three readers (CQ500).",))
    return replace(labels, agreement=agreement)


def _adapt_cq500(predictions: Predictions) -> Predictions:
    """Name the patients as `reads.csv` does, from their PatientID or the path of a slice."""
    table = predictions.table.copy()
    names: pd.Series = pd.Series("", index=table.index)
    for column in ("PatientID", "path"):
        if column in table:
            found = table[column].astype(str).map(_name_cq500)
            names = names.where(names != "", found)
    if "PatientID" in table:
        names = names.where(names != "", table["PatientID"])
    table["PatientID"] = names
    return replace(predictions, table=table)


def list_forms(patient: str) -> set[str]:
    """List the forms in which public sets write a PatientID: a run may know it by another.

    CQ500's names with hyphens, as in `reads.csv`, and without, once or twice, as in folders and
    headers; bare numbers, as CT-ICH's, with leading zeros and without.
    """
    name = patient.strip()
    if found := re.search(_CQ500_NAME, name, re.IGNORECASE):
        short = f"CQ500CT{int(found[1])}"
        return {name, f"CQ500-CT-{int(found[1])}", short, f"{short} {short}"}
    if found := re.fullmatch(r"0*(\d+?)(\.nii(\.gz)?)?", name):
        return {name, found[1], found[1].zfill(3)}
    return {name}


def _name_cq500(text: str) -> str:
    found = re.search(_CQ500_NAME, text, re.IGNORECASE)
    return f"CQ500-CT-{int(found[1])}" if found else ""


def _read_ct_ich(path: Path, columns: dict[str, str] | None) -> Labels:
    """Read CT-ICH's table, one row a slice: patient's and slice's number, five kinds, none."""
    table = read_columns(path, columns)
    table.columns = [name.strip() for name in table]
    kinds_needed = [label.capitalize() for label in LABELS[:5]]
    for column in ("PatientNumber", "SliceNumber", "No_Hemorrhage", *kinds_needed):
        if column not in table:
            raise InputError(f"{path}: no column {column!r}, as CT-ICH's table of diagnoses has")
    table = table.rename(columns={label.capitalize(): label for label in LABELS[:5]})
    none = pd.to_numeric(table["No_Hemorrhage"], errors="coerce")
    kinds = table[list(LABELS[:5])].apply(pd.to_numeric, errors="coerce").max(axis=1)
    wrong = kinds.notna() & (kinds != 1 - none)
    if wrong.any():
        row = int(np.argmax(wrong)) + 1
        raise InputError(f"{path}: row {row}: No_Hemorrhage contradicts the five kinds")
    patient, number = table["PatientNumber"].map(_number), table["SliceNumber"].map(_number)
    table = table.assign(any=1 - none, PatientID=patient, SOPInstanceUID=patient + ":" + number)
    note = "A slice is named by its patient's number and its own, from the lowest (CT-ICH)."
    return make_labels(path, table, (note,))


def _adapt_ct_ich(predictions: Predictions) -> Predictions:
    """Name slices by the number in the PatientID and by `seq`, as the labels do."""
    table = predictions.table.copy()
    if not {"PatientID", "seq"} <= set(table):
        raise InputError("CT-ICH's labels are by slice: the predictions need PatientID and seq")
    table["PatientID"] = table["PatientID"].map(_number)
    table["SOPInstanceUID"] = table["PatientID"] + ":" + table["seq"].astype(str)
    twice = table["SOPInstanceUID"].duplicated()
    if twice.any():
        raise InputError(
            f"two predicted slices are CT-ICH's {table['SOPInstanceUID'][twice].iloc[0]} "
            "(patient:slice): predict each scan once"
        )
    return replace(predictions, table=table)


def _number(text: str) -> str:
    """Return the last number in a text, without leading zeros: `049.nii` → 49."""
    found = re.findall(r"\d+", str(text))
    return str(int(found[-1])) if found else str(text)


def _read_rsna(path: Path, columns: dict[str, str] | None) -> Labels:
    if columns:
        raise InputError(f"{path}: the organizers' labels have one form: no column can be mapped")
    return make_labels(path, read_labels(path).reset_index())


def _keep(predictions: Predictions) -> Predictions:
    return predictions


PRESETS = {
    "rsna": Preset(_read_rsna, _keep),
    "scan": Preset(read_labels_table, _keep),
    "cq500": Preset(_read_cq500, _adapt_cq500),
    "ct-ich": Preset(_read_ct_ich, _adapt_ct_ich),
}
