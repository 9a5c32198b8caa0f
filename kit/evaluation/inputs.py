"""Predictions and labels, read from kit's tables or from anybody's CSV with a map of columns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import ArrowException, parquet

from kit import InputError
from kit.competition import LABELS, read_submission
from kit.ensemble import name_columns
from kit.files import open_file

# The units of analysis, from the finest to the coarsest, and the column that identifies each.
IDS = {
    "slice": "SOPInstanceUID",
    "series": "SeriesInstanceUID",
    "study": "StudyInstanceUID",
    "patient": "PatientID",
}
UNITS = tuple(IDS)
OWN = "own PatientID"  # as the predictions have it, where a preset renames it as its labels do

WHOLE = "model"  # the predictions that are evaluated; other models of a file are compared with it

# What a file's columns begin with: the models' names on pages. In a run's tables plain names of
# labels are the truth, and `bag_` are the predictions; so these are looked for first.
_MODELS = {
    "bag_": WHOLE,
    "": WHOLE,
    "classifier_": "classifier alone",
    "rolling_mean_": "rolling mean",
    "lstm_": "LSTM, last epoch",
}
_WEIGHTS = {"weight", "weights", "sample_weight"}


@dataclass(frozen=True)
class Predictions:
    """One row per slice, series, study or patient (`unit`).

    `table` has the ids as text and every other column of the file; the probabilities of each model
    are in columns `{model}_{label}`, for those labels that it predicts. `calibrated` says that a
    temperature was already applied.
    """

    table: pd.DataFrame
    unit: str
    models: list[str]
    calibrated: bool = False


@dataclass(frozen=True)
class Labels:
    """One row per slice, series, study or patient (`unit`): ids as text, labels 0, 1 or NaN.

    `agreement` is Fleiss' kappa of each label where several readers gave it; `notes` say how the
    labels came about.
    """

    table: pd.DataFrame
    unit: str
    agreement: dict[str, float]
    notes: list[str]


def read_predictions(path: Path, columns: dict[str, str] | None = None) -> Predictions:
    """Read the CSV of `kit predict`, a submission, a run's `oof.parquet` or another's CSV.

    `columns` maps our names (an id or a label) to those of the file. Raises `InputError` naming the
    file and the row for a missing or repeated id and for a value that is no probability; and where
    a label is mapped in a run's table, in which its name is that of the truth.
    """
    table = read_columns(path, columns)
    mapped = [label for label in LABELS if label in (columns or {})]
    if mapped and _find_labels(table, "bag_"):
        raise InputError(
            f"{path}: has a run's own predictions (bag_{mapped[0]} …), which count: no column can "
            f"be mapped to {mapped[0]}"
        )
    if list(table) == ["ID", "Label"]:
        table = read_submission(path).reset_index()
    parts, names = [], []
    for prefix, model in _MODELS.items():
        found = _find_labels(table, prefix)
        if found and model not in names:
            values = _read_numbers(path, table, found)
            if model != WHOLE and values.isna().all(axis=None):
                continue  # a run whose embeddings were imported knows no classifier
            parts.append(values.set_axis([f"{model}_{label}" for label in found], axis=1))
            names.append(model)
    if WHOLE not in names:
        raise InputError(f"{path}: no column of a label ({', '.join(LABELS)}); map one: any=COLUMN")
    for values in parts:
        _refuse_rows(path, ~((values >= 0) & (values <= 1)), "is no probability from 0 to 1")
    calibrated = "calibrated" in table and table["calibrated"].astype(str).eq("True").any()
    ours = {*LABELS, OWN, *(name for part in parts for name in part)}
    rest = table[[name for name in table if name not in ours]]
    unit = find_unit(path, rest)
    if IDS["patient"] in rest:
        rest = rest.assign(**{OWN: rest[IDS["patient"]]})
    return Predictions(pd.concat([rest, *parts], axis=1), unit, names, bool(calibrated))


def read_labels_table(path: Path, columns: dict[str, str] | None = None) -> Labels:
    """Read labels, one row a slice, series, study or patient, as `make_labels` takes them."""
    return make_labels(path, read_columns(path, columns))


def make_labels(path: Path, table: pd.DataFrame, notes: tuple[str, ...] = ()) -> Labels:
    """Make labels of a table read from `path`, one row a slice, series, study or patient.

    A blank is a missing label. Where all five kinds have a column and `any` has none, it is whether
    one of them is present. Raises `InputError` as `read_predictions` does, for values other than 0
    and 1, and for weights.
    """
    found = _find_labels(table, "")
    if not found:
        raise InputError(f"{path}: no column of a label ({', '.join(LABELS)}); map one: any=COLUMN")
    weights = _WEIGHTS & {name.lower() for name in table}
    if weights:
        raise InputError(
            f"{path}: has the column {min(weights)!r}, but rows cannot be weighted: the intervals "
            "hold for rows that count once. Rename or drop the column to evaluate without weights"
        )
    values = _read_numbers(path, table, found).set_axis(list(found), axis=1)
    _refuse_rows(path, ~(values.isna() | values.isin([0, 1])), "is neither 0, 1 nor blank")
    if "any" not in values and values.shape[1] == len(LABELS) - 1:
        known = values.notna().all(axis=1) | values.eq(1).any(axis=1)
        values["any"] = values.max(axis=1).where(known)
        notes = (*notes, "`any` was derived: positive where one of the five kinds is.")
    rest = table[[name for name in table if name not in found.values()]]
    return Labels(pd.concat([rest, values], axis=1), find_unit(path, rest), {}, list(notes))


def read_columns(
    path: Path, columns: dict[str, str] | None = None, may_be_empty: bool = False
) -> pd.DataFrame:
    """Read a CSV (all as text, blanks as they are) or a parquet table; rename by `columns`.

    Raises `InputError` naming the file where it has no row, unless it `may_be_empty`, and the
    column where it is not there or has two names.
    """
    columns = columns or {}
    for column in columns.values():
        twins = [other for other in columns if columns[other] == column]
        if len(twins) > 1:
            raise InputError(f"{path}: the column {column!r} is given for {' and '.join(twins)}")
    how = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
    try:
        with open_file(path) as file:
            if path.suffix == ".parquet":
                table = parquet.ParquetFile(file).read(use_threads=False).to_pandas()
            else:
                packed = "gzip" if path.suffix == ".gz" else None
                table = pd.read_csv(file, compression=packed, **how).map(_unguard_formula)
        if not isinstance(table.index, pd.RangeIndex):
            raise ValueError("its rows have more columns than its header")
    except (ArrowException, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a table that can be read: {error}") from error
    if table.empty and not may_be_empty:
        raise InputError(f"{path}: there is no row in it")
    for column in columns.values():
        if column not in table:
            raise InputError(f"{path}: no column {column!r}; there are {', '.join(table)}")
    table = table.drop(columns=[name for name in {*columns} - {*columns.values()} if name in table])
    table = table.rename(columns={column: name for name, column in columns.items()})
    for name in set(IDS.values()) & set(table):
        table[name] = table[name].astype(str).str.strip()
    return table


# What a spreadsheet runs as a formula, perhaps behind apostrophes that were put there.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def guard_formula(text: str) -> str:
    """A table's cell with an apostrophe in front if a spreadsheet would run it as a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def _unguard_formula(text: str) -> str:
    """The cell that `guard_formula` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def find_unit(path: Path, table: pd.DataFrame) -> str:
    """Return what a row is: the finest unit whose id column is there; its ids must be unique."""
    unit = next((unit for unit, name in IDS.items() if name in table), None)
    if unit is None:
        raise InputError(
            f"{path}: no column of ids ({', '.join(IDS.values())}); map one: "
            "StudyInstanceUID=COLUMN"
        )
    ids = table[IDS[unit]]
    missing = ids.isin(["", "nan", "None", "<NA>"])
    if missing.any():
        raise InputError(f"{path}: row {missing.argmax() + 1} has no {IDS[unit]}")
    if ids.duplicated().any():
        raise InputError(f"{path}: {IDS[unit]} {ids[ids.duplicated()].iloc[0]} occurs twice")
    return unit


def select_models(predictions: Predictions) -> dict[str, np.ndarray]:
    """Return each model's probabilities, (N, 6); NaN in the columns of labels it does not give."""
    return {
        model: predictions.table.reindex(columns=[f"{model}_{label}" for label in LABELS]).to_numpy(
            np.float64
        )
        for model in predictions.models
    }


def _find_labels(table: pd.DataFrame, prefix: str) -> dict[str, str]:
    """Map each label to its column; in tables by series that is the maximum over the slices."""
    found = {}
    for label, name in zip(LABELS, name_columns(prefix.rstrip("_")), strict=True):
        name = name if prefix else label
        column = next((c for c in (name, f"{name}_maximum") if c in table), None)
        if column:
            found[label] = column
    return found


def _read_numbers(path: Path, table: pd.DataFrame, found: dict[str, str]) -> pd.DataFrame:
    """Read columns as numbers; a blank is NaN."""
    texts = table[list(found.values())]
    numbers = texts.apply(pd.to_numeric, errors="coerce").astype(np.float64)
    blank = texts.isna() | texts.astype(str).apply(lambda column: column.str.strip().eq(""))
    _refuse_rows(path, numbers.isna() & ~blank, "is not a number")
    return numbers


def _refuse_rows(path: Path, wrong: pd.DataFrame, reason: str) -> None:
    """Raise `InputError` naming the first row and column that are `wrong`."""
    if wrong.to_numpy().any():
        row, column = np.argwhere(wrong.to_numpy())[0]
        raise InputError(f"{path}: row {row + 1}: {wrong.columns[column]} {reason}")
