"""Predictions and labels brought together: one row per unit of analysis, nothing dropped unsaid."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from kit import InputError
from kit.competition import LABELS
from kit.evaluation.inputs import IDS, UNITS, WHOLE, Labels, Predictions, select_models
from kit.progress import format_count

_PSEUDONYM = re.compile(r"patient\d+")  # as `kit predict --pseudonymize` writes
_MISSING = ["", "nan", "None", "<NA>"]


@dataclass(frozen=True)
class Cases:
    """The units of analysis, N of them, in the order of the predictions.

    `labels` (N, 6) are 0, 1 or NaN (unknown). `models` are the probabilities, (N, 6) each, of the
    one that is evaluated and of those it is compared with; NaN for labels that a model does not
    give. `identified` says that `patients` are PatientIDs. `details` (N rows) has the ids, every
    column of both files that says one thing about a unit, and `series` and `series_count`: which
    series stood for a study, out of how many. `unmatched` lists the ids that one file alone has:
    `id`, `unit`, `found_in`.
    """

    unit: str
    ids: np.ndarray
    patients: np.ndarray
    identified: bool
    labels: np.ndarray
    models: dict[str, np.ndarray]
    details: pd.DataFrame
    unmatched: pd.DataFrame
    notes: list[str]

    def select(self, rows: np.ndarray) -> Cases:
        """Return the cases with the rows of a mask (N,) alone."""
        return replace(
            self,
            ids=self.ids[rows],
            patients=self.patients[rows],
            labels=self.labels[rows],
            models={name: values[rows] for name, values in self.models.items()},
            details=self.details[rows].reset_index(drop=True),
        )


def match_cases(predictions: Predictions, labels: Labels, unit: str) -> Cases:
    """Match predictions with labels by their ids and summarize both by `unit`.

    A unit's probability is the maximum over its slices; it is positive where one of its slices is.
    Raises `InputError` where a file says nothing about such units, and where no id is in both.
    """
    ours, truth = predictions.table, labels.table
    ours, truth = _borrow_ids(ours, truth), _borrow_ids(truth, ours)
    _check_unit(ours, "predictions", predictions.unit, unit)
    _check_unit(truth, "labels", labels.unit, unit)
    ours, unplaced = _drop_unplaced(ours, unit, predictions.unit, "predictions")
    truth, lost = _drop_unplaced(truth, unit, labels.unit, "labels")
    found, details = _summarize_predictions(ours, unit, predictions.models)
    known = _summarize_labels(truth, unit)
    both = found.index.intersection(known.index, sort=False)
    unmatched = pd.concat(
        [
            unplaced,
            lost,
            _list_ids(found.index.difference(known.index), unit, "predictions"),
            _list_ids(known.index.difference(found.index), unit, "labels"),
        ]
    )
    if both.empty:
        raise InputError(
            f"no {unit} is in both files: the predictions have, for example, {found.index[0]!r}, "
            f"the labels {known.index[0]!r}"
        )
    details = _join_details(details.loc[both], _describe_units(truth, unit).loc[both])
    patients, note = _find_patients(details, unit)
    selected = select_models(replace(predictions, table=found.loc[both]))
    values = known.loc[both].reindex(columns=list(LABELS)).to_numpy(np.float64)
    return Cases(
        unit, both.to_numpy(), patients, not note, values, selected, details.reset_index(),
        unmatched.reset_index(drop=True), [*labels.notes, *([note] if note else [])],
    )  # fmt: skip


def add_model(cases: Cases, name: str, predictions: Predictions) -> Cases:
    """Add another file's predictions as a model to compare with; only units that both have stay."""
    table = _borrow_ids(predictions.table, cases.details)
    if IDS[cases.unit] not in table:
        raise InputError(f"{name}: has no {IDS[cases.unit]}: a {cases.unit} cannot be told")
    found, _ = _summarize_predictions(table, cases.unit, predictions.models[:1])
    shared = np.isin(cases.ids, found.index)
    if not shared.any():
        raise InputError(f"{name}: has no {cases.unit} that was evaluated")
    lost = _list_ids(pd.Index(cases.ids[~shared]), cases.unit, "predictions, but not in --against")
    cases = replace(cases.select(shared), unmatched=pd.concat([cases.unmatched, lost]))
    values = select_models(replace(predictions, table=found.loc[cases.ids], models=[WHOLE]))[WHOLE]
    return replace(cases, models={**cases.models, name: values})


def exclude_seen(cases: Cases, seen: frozenset[str], exclude: bool) -> Cases:
    """Leave out the patients whose hashed ids are in `seen`, with a note that says how many.

    Raises `InputError` where there are such patients and they are not to be excluded.
    """
    names = pd.unique(cases.patients)
    if not cases.identified or all(_PSEUDONYM.fullmatch(str(name)) for name in names):
        note = "Whether the model was trained on these patients is unknown: no PatientID is given."
        return replace(cases, notes=[*cases.notes, note])
    known = [name for name in names if hash_patient(name) in seen]
    if known and not exclude:
        raise InputError(
            f"the run was trained on {len(known)} of the {format_count(len(names), 'patient')} "
            "evaluated here, which would make it look better than it is: leave them out by "
            "--exclude-seen"
        )
    if len(known) == len(names):
        raise InputError("the run was trained on all patients of the labels: none is left")
    kept = cases.select(~np.isin(cases.patients, known))
    left_out = f"{len(cases.ids) - len(kept.ids)} of {len(cases.ids)} rows by {cases.unit}"
    note = (
        f"{format_count(len(known), 'patient')} ({left_out}) that the model was trained on were "
        "left out."
        if known
        else "By their ids, the model was trained on none of these patients."
    )
    return replace(kept, notes=[*cases.notes, note])


def hash_patient(patient: str) -> str:
    """Hash a PatientID as a run keeps those it was trained on."""
    return hashlib.sha256(str(patient).strip().encode()).hexdigest()


def _check_unit(table: pd.DataFrame, name: str, found: str, unit: str) -> None:
    """Raise `InputError` where a table, by the unit `found`, says nothing about `unit`."""
    if UNITS.index(found) > UNITS.index(unit):
        raise InputError(f"the {name} are by {found}: they say nothing about a single {unit}")
    if IDS[unit] not in table:
        raise InputError(
            f"the {name} are by {found} and have no {IDS[unit]}: the {unit} is unknown"
        )


def _borrow_ids(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Add the ids that `other` has and `table` has not, by the finest id that both have."""
    shared = next((name for name in IDS.values() if name in table and name in other), None)
    wanted = [name for name in IDS.values() if name in other and name not in table]
    coarser = [name for name in wanted if shared and list(IDS.values()).index(name) > list(
        IDS.values()).index(shared)]  # fmt: skip
    if not coarser:
        return table
    source = other.drop_duplicates(shared).set_index(shared)[coarser]
    return table.join(source, on=shared)


def _drop_unplaced(
    table: pd.DataFrame, unit: str, own: str, name: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Part from a table the rows of which the unit is unknown; list them by their own ids."""
    unknown = table[IDS[unit]].isna() | table[IDS[unit]].astype(str).isin(_MISSING)
    return table[~unknown], _list_ids(pd.Index(table.loc[unknown, IDS[own]]), own, name)


def _list_ids(ids: pd.Index, unit: str, found_in: str) -> pd.DataFrame:
    return pd.DataFrame({"id": ids.astype(str), "unit": unit, "found_in": found_in})


def _summarize_predictions(
    table: pd.DataFrame, unit: str, models: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return each unit's highest probabilities, and what else is known of it, by its id."""
    key = IDS[unit]
    columns = [f"{model}_{label}" for model in models for label in LABELS]
    columns = [name for name in columns if name in table]
    values = table.groupby(key, sort=False)[columns].max()
    details = _describe_units(table.drop(columns=columns), unit)
    series = IDS["series"]
    if unit in ("study", "patient") and series in table:
        leading = next(name for name in (f"{models[0]}_any", *columns) if name in table)
        place = table.groupby(key, sort=False)[leading].idxmax()
        stands = table.loc[place].set_index(key)[series]
        counts = table.groupby(key, sort=False)[series].nunique()
        details = details.assign(series=stands, series_count=counts)
    if unit == "slice" and {series, "seq"} <= set(table):
        rank = table.groupby(series)["seq"].transform(lambda s: pd.to_numeric(s).rank() - 1)
        last = table.groupby(series)["seq"].transform("size") - 1
        relative = (rank / last.where(last > 0, 1)).to_numpy()
        details = details.assign(relative_position=pd.Series(relative, table[key].to_numpy()))
    return values, details


def _summarize_labels(table: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Return each unit's labels: 1 where a row has it, NaN where none has and one is unknown."""
    columns = [label for label in LABELS if label in table]
    groups = table.groupby(IDS[unit], sort=False)[columns]
    highest = groups.max()
    complete = groups.count().eq(groups.size(), axis=0)
    return highest.where(complete | highest.eq(1))


def _describe_units(table: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Return what a table says of each unit, by its id: "several values" where rows differ."""
    rest = table.drop(columns=[label for label in LABELS if label in table]).astype(str)
    rest = rest.replace(dict.fromkeys(_MISSING, ""))
    if rest[IDS[unit]].is_unique:
        return rest.set_index(IDS[unit])
    groups = rest.groupby(IDS[unit], sort=False)
    return groups.first().where(groups.nunique() <= 1, "several values")


def _join_details(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Join what both files say; the labels' PatientID counts, for the other may be a pseudonym."""
    ours = ours.drop(columns=IDS["patient"], errors="ignore") if IDS["patient"] in theirs else ours
    return ours.join(theirs[[name for name in theirs if name not in ours]])


def _find_patients(details: pd.DataFrame, unit: str) -> tuple[np.ndarray, str]:
    """Return the patient of each unit, or what stands for it, and a note that says so."""
    table = details.reset_index()
    name = IDS["patient"]
    if name in table and not table[name].isin(["", "several values"]).any():
        return table[name].to_numpy(), ""
    columns = {stand_in: IDS[stand_in] for stand_in in ("study", "series", unit)}
    stand_in = next(
        key
        for key, column in columns.items()
        if column in table and not table[column].isin(["", "several values"]).any()
    )
    return table[columns[stand_in]].to_numpy(), (
        f"No PatientID: each {stand_in} counts as a patient, and training patients cannot be "
        "recognized."
    )
