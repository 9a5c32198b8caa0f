"""Predictions and labels brought together: one row per unit of analysis, nothing dropped unsaid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from kit import InputError
from kit.competition import LABELS
from kit.evaluation.inputs import IDS, OWN, UNITS, WHOLE, Labels, Predictions, select_models
from kit.progress import format_count

MISSING = ["", "nan", "None", "<NA>"]


@dataclass(frozen=True)
class Cases:
    """The units of analysis, N of them, in the order of the predictions.

    `labels` (N, 6) are 0, 1 or NaN (unknown). `models` are the probabilities, (N, 6) each, of the
    one that is evaluated and of those it is compared with; NaN for labels that a model does not
    give. `patients` (N,) are PatientIDs, or what stands for one. `details` (N rows) has the ids,
    every column of both files that says one thing about a unit, and `series` and `series_count`:
    which series stood for a study, out of how many. `named` has the ids of every row of both files,
    also those that the predictions had before they were named as the labels are. `unmatched` lists
    the ids that one file alone has: `id`, `unit`, `found_in`.
    """

    unit: str
    ids: np.ndarray
    patients: np.ndarray
    labels: np.ndarray
    models: dict[str, np.ndarray]
    details: pd.DataFrame
    named: pd.DataFrame
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
    ours, unplaced = _part_unplaced(ours, unit, "the predictions")
    truth, lost = _part_unplaced(truth, unit, "the labels")
    found, details = _summarize_predictions(ours, unit, predictions.models)
    known = _summarize_labels(truth, unit)
    both = found.index.intersection(known.index, sort=False)
    unmatched = pd.concat(
        [
            _list_ids(unplaced[IDS[predictions.unit]], predictions.unit, "predictions"),
            _list_ids(lost[IDS[labels.unit]], labels.unit, "labels"),
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
    notes = [*labels.notes, *_describe_lost(lost, labels.unit, unit), note]
    return Cases(
        unit, both.to_numpy(), patients, values, selected, details.reset_index(),
        _name_rows(ours, truth), unmatched.reset_index(drop=True), [text for text in notes if text],
    )  # fmt: skip


def add_model(cases: Cases, name: str, predictions: Predictions) -> Cases:
    """Add another file's predictions as a model to compare with; only units that both have stay.

    Ids that one of them alone has are listed in `unmatched`. Raises `InputError` where the other
    file does not tell the unit of its rows, and where none of them was evaluated.
    """
    key = IDS[cases.unit]
    table = _borrow_ids(predictions.table, cases.named)
    if key not in table:
        raise InputError(f"{name}: has no {key}: a {cases.unit} cannot be told")
    table, unplaced = _part_unplaced(table, cases.unit, name)
    found, _ = _summarize_predictions(table, cases.unit, predictions.models[:1])
    shared = pd.Index(cases.ids).isin(found.index)
    if not shared.any():
        raise InputError(f"{name}: has no {cases.unit} that was evaluated")
    others = found.index.difference([*cases.ids, *cases.unmatched["id"]])
    unmatched = [
        cases.unmatched,
        _list_ids(cases.ids[~shared], cases.unit, "predictions and labels"),
        _list_ids(unplaced[IDS[predictions.unit]], predictions.unit, "--against"),
        _list_ids(others, cases.unit, "--against"),
    ]
    cases = replace(cases.select(shared), unmatched=pd.concat(unmatched, ignore_index=True))
    values = select_models(replace(predictions, table=found.loc[cases.ids], models=[WHOLE]))[WHOLE]
    return replace(cases, models={**cases.models, name: values})


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
    known = other[[shared, *coarser]].replace(MISSING, None)  # a blank tells nothing
    return table.join(known.groupby(shared)[coarser].first(), on=shared)


def _part_unplaced(table: pd.DataFrame, unit: str, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Part a table into the rows whose unit is known and the others."""
    unknown = table[IDS[unit]].isna() | table[IDS[unit]].astype(str).isin(MISSING)
    if unknown.all():
        raise InputError(f"no row of {name} has a known {IDS[unit]}: the {unit} cannot be told")
    return table[~unknown], table[unknown]


def _describe_lost(lost: pd.DataFrame, own: str, unit: str) -> list[str]:
    """Say how many positive rows of the labels belong to no unit."""
    positive = int(lost[[label for label in LABELS if label in lost]].eq(1).any(axis=1).sum())
    if not positive:
        return []
    return [
        f"{format_count(positive, 'positive row')} by {own} without a prediction, of an unknown "
        f"{unit}: a {unit} whose bleeding is on such rows alone counts as negative."
    ]


def _name_rows(*tables: pd.DataFrame) -> pd.DataFrame:
    """Gather the ids of every row of the tables; a blank where a table has none."""
    ids = [*IDS.values(), OWN]
    named = pd.concat([table[[name for name in ids if name in table]] for table in tables])
    return named.astype(object).where(named.notna(), "").astype(str)


def _list_ids(ids: Iterable, unit: str, found_in: str) -> pd.DataFrame:
    return pd.DataFrame({"id": list(map(str, ids)), "unit": unit, "found_in": found_in})


def _summarize_predictions(
    table: pd.DataFrame, unit: str, models: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return each unit's highest probabilities, and what else is known of it, by its id."""
    key = IDS[unit]
    columns = [f"{model}_{label}" for model in models for label in LABELS]
    columns = [name for name in columns if name in table]
    values = table.groupby(key, sort=False)[columns].max()
    details = _describe_units(table.drop(columns=[*columns, OWN], errors="ignore"), unit)
    series = IDS["series"]
    if unit in ("study", "patient") and series in table:
        leading = next(name for name in (f"{models[0]}_any", *columns) if name in table)
        place = table.groupby(key, sort=False)[leading].idxmax()
        stands = table.loc[place].set_index(key)[series]
        counts = table.groupby(key, sort=False)[series].nunique()
        if "series_count" in table:  # of which one was chosen before, as `--by study` does
            counts = pd.to_numeric(table.groupby(key, sort=False)["series_count"].first())
        details = details.assign(series=stands, series_count=counts)
    if unit == "slice" and {series, "seq"} <= set(table):
        numbers = pd.to_numeric(table["seq"], errors="coerce").groupby(table[series])
        last = numbers.transform("size") - 1
        relative = (numbers.rank() - 1) / last.where(last > 0, 1)  # NaN where seq is no number
        details = details.assign(relative_position=relative.set_axis(table[key]))
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
    rest = table.drop(columns=[label for label in LABELS if label in table])
    rest = rest.astype(object).where(rest.notna(), "").astype(str)
    rest = rest.replace(dict.fromkeys(MISSING, ""))
    if rest[IDS[unit]].is_unique:
        return rest.set_index(IDS[unit])
    groups = rest.groupby(IDS[unit], sort=False)
    return groups.first().where(groups.nunique() <= 1, "several values")


def _join_details(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Join what both files say; the labels' PatientID counts, for the other may be a pseudonym."""
    patient = IDS["patient"]
    if patient in ours and patient in theirs:
        ours = ours.assign(**{patient: theirs[patient].where(theirs[patient] != "", ours[patient])})
    return ours.join(theirs[[name for name in theirs if name not in ours]])


def _find_patients(details: pd.DataFrame, unit: str) -> tuple[np.ndarray, str]:
    """Return the patient of each unit, or what stands for it, and a note that says so."""
    table = details.reset_index()
    unknown = {column: table[column].isin(["", "several values"]) for column in table}
    stand_in = next(
        key
        for key in ("study", "series", unit)
        if IDS[key] in table and not unknown[IDS[key]].any()
    )
    stands, name = table[IDS[stand_in]], IDS["patient"]
    if name not in table:
        return stands.to_numpy(), f"No PatientID: each {stand_in} counts as a patient."
    blank = unknown[name]
    note = (
        f"{blank.sum()} of {len(blank)} rows by {unit} have no single PatientID: of these each "
        f"{stand_in} counts as a patient."
    )
    return table[name].where(~blank, stands).to_numpy(), note if blank.any() else ""
