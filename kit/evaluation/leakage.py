"""Patients that a model was trained on, found among those that it is evaluated on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from kit import InputError
from kit.evaluation.cases import MISSING, Cases
from kit.evaluation.inputs import IDS, OWN
from kit.evaluation.presets import list_forms
from kit.progress import format_count

_PSEUDONYM = re.compile(r"patient\d+")  # as `kit predict --pseudonymize` writes


def exclude_seen(cases: Cases, seen: frozenset[str], exclude: bool) -> Cases:
    """Leave out the patients whose hashed ids are in `seen`, with notes that say how many.

    A patient is recognized by each PatientID that either file has, as it stands there and in the
    forms of public sets. Raises `InputError` where there are such patients and they are not to be
    excluded.
    """
    names = _list_names(cases)
    found = [name for name in names if any(hash_patient(form) in seen for form in list_forms(name))]
    ours = _are_in(cases.ids, (unit for name in found for unit in names[name]))
    ours = _are_in(cases.patients, cases.patients[ours])  # with the patient's other rows
    known, patients = (len(np.unique(cases.patients[rows])) for rows in (ours, slice(None)))
    if known and not exclude:
        raise InputError(
            f"the run was trained on {known} of the {format_count(patients, 'patient')} "
            "evaluated here, which would make it look better than it is: leave them out by "
            "--exclude-seen"
        )
    if ours.all():
        raise InputError("the run was trained on all patients of the labels: none is left")
    telling = (unit for name in names if not _PSEUDONYM.fullmatch(name) for unit in names[name])
    kept, named = cases.select(~ours), _are_in(cases.ids[~ours], telling)
    notes = []
    if known:
        left_out = f"{ours.sum()} of {len(ours)} rows by {cases.unit}"
        notes.append(
            f"{format_count(known, 'patient')} ({left_out}) that the model was trained on were "
            "left out."
        )
    elif named.any():
        notes.append("By their ids, the model was trained on none of these patients.")
    if not named.all():
        notes.append(
            "Whether the model was trained on these patients is unknown for "
            f"{(~named).sum()} of {len(named)} rows by {cases.unit}: no PatientID is given."
        )
    return replace(kept, notes=[*cases.notes, *notes])


def hash_patient(patient: str) -> str:
    """Hash a PatientID as a run keeps those it was trained on."""
    return hashlib.sha256(str(patient).strip().encode()).hexdigest()


def _are_in(values: np.ndarray, chosen: Iterable) -> np.ndarray:
    return pd.Index(values).isin(list(chosen))  # numpy compares each with each


def _list_names(cases: Cases) -> dict[str, list[str]]:
    """List every PatientID that either file gives, with the units that have it."""
    names: dict[str, list[str]] = {}
    unit_id = IDS[cases.unit]
    for column in (IDS["patient"], OWN):
        if column in cases.named:
            for unit, name in set(zip(cases.named[unit_id], cases.named[column], strict=True)):
                if name not in MISSING:
                    names.setdefault(name, []).append(unit)
    return names
