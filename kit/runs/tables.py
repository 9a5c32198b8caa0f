"""The tables of a run: written whole, and read with a check of what is in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import ArrowException, parquet

from kit import InputError
from kit.competition import LABELS
from kit.ensemble import MODELS, name_columns
from kit.evaluation.inputs import guard_formula, read_columns
from kit.files import open_whole, replace_file
from kit.runs.directory import Run, RunError, require_file

# What reading a damaged table raises, in pandas and in Arrow.
_UNREADABLE = (ArrowException, OSError, ValueError, TypeError, LookupError, MemoryError)
_MODELS = tuple(column for model in MODELS for column in name_columns(model))
_NUMBERS = {"seq", "position", "fold", *LABELS, *_MODELS}
_TEXTS = {
    "path", "reason", "code", "PatientID", "StudyInstanceUID", "SeriesInstanceUID",
    "SOPInstanceUID", "ImagePositionPatient", "series", "split",
}  # fmt: skip
_PLACED = ("path", "SOPInstanceUID", "SeriesInstanceUID", "series", "seq", "position", "repaired")
_NAMED = ("PatientID", "StudyInstanceUID", "ImagePositionPatient")


# Of the tables of `kit predict`; names that end in UID are texts too.
_WRITTEN_TEXTS = {
    *_TEXTS, "StudyDescription", "SeriesDescription", "plane", "ConvolutionKernel",
    "ContrastBolusAgent", "BodyPartExamined", "warnings",
}  # fmt: skip


def read_slices(run: Run) -> pd.DataFrame:
    """Read the slice table of a run. Raises `OSError`, or `RunError` where it is not one."""
    require_file(run.slices, f"kit index DATA --run {run}")
    slices = _read_frame(run.slices, (*_PLACED, "split", "fold", *LABELS), _NAMED)
    for name, values in (("split", ["train", "test"]), *((label, [-1, 0, 1]) for label in LABELS)):
        if not slices[name].isin(values).all():
            raise RunError(f"{run.slices}: {name} has other values than {values}")
    return slices


def read_placed(path: Path) -> pd.DataFrame:
    """Read a slice table without split and labels. Raises as `read_slices`."""
    return _read_frame(path, _PLACED, _NAMED)


def read_skipped(path: Path) -> pd.DataFrame:
    """Read the list of skipped files. Raises as `read_slices`."""
    return _read_frame(path, ("path", "reason"), ("SOPInstanceUID", "series", "position"))


def read_predicted(path: Path) -> pd.DataFrame:
    """Read the slices of `oof.parquet` or `test.parquet` with their predictions by all models.

    Raises as `read_slices`.
    """
    truth = ("fold", *LABELS) if path.name == "oof.parquet" else ()
    return _read_frame(path, (*_PLACED, *name_columns("bag"), *truth), (*_NAMED, *_MODELS))


def read_members(paths: Iterable[Path]) -> Iterator[pd.DataFrame]:
    """Read predictions (images × `LABELS`) from one file after another. Raises as `read_slices`."""
    for path in paths:
        table = _read_frame(path, ("SOPInstanceUID", *LABELS))
        yield table.set_index("SOPInstanceUID")[list(LABELS)]


def _read_frame(
    path: Path, complete: tuple[str, ...] = (), other: tuple[str, ...] = ()
) -> pd.DataFrame:
    """Read a table that `write_frame` wrote; `complete` columns must have a value in each row.

    Raises `OSError`, or `RunError` where it is damaged, lacks one of these columns or `other`, or
    has texts for numbers or the reverse.
    """
    with open_whole(path) as file:
        try:
            if path.suffix == ".parquet":
                # In this thread: one of Arrow's that still holds the file while Python ends, after
                # Ctrl-C, aborts the process.
                arrow = parquet.ParquetFile(file).read(use_threads=False)
                arrow.validate(full=True)  # texts that are not UTF-8 would fail only where used
                table = arrow.to_pandas()
            else:
                table = pd.read_csv(file, dtype=str, keep_default_na=False, na_values=[""])
                numbers = list(_NUMBERS.intersection(table))
                table[numbers] = table[numbers].astype(np.float64)
        except _UNREADABLE as error:
            raise RunError(f"{path}: not a table that can be read ({error})") from error
    for name in (*complete, *other):
        if name not in table:
            raise RunError(f"{path}: the column {name} is missing")
    for name in table:
        if not _has_kind(name, table[name]):
            raise RunError(f"{path}: the column {name} holds {table[name].dtype} values")
    for name in complete:
        gaps = table[name].isin([np.inf, -np.inf]) if name in _NUMBERS else table[name].isna()
        gaps |= table[name].isna()
        if gaps.any():
            raise RunError(f"{path}: row {int(gaps.argmax()) + 1} has no {name}")
    return table


def _has_kind(name: str, values: pd.Series) -> bool:
    """Whether a column is of the type that kit writes. One of a type that is not known is."""
    if name in _NUMBERS:
        return pd.api.types.is_numeric_dtype(values) and values.dtype.kind in "iuf"
    if name == "repaired":
        return values.dtype == bool
    if name not in _TEXTS or values.isna().all():
        return True
    # What a file holds in a column is all of one type.
    return isinstance(values[values.first_valid_index()], str)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a CSV of `kit predict` as it was written.

    Ids and descriptions come back as text, also those that pandas would take for numbers or missing
    (007, NA, 1e5), without the apostrophe before what a spreadsheet would run; blanks are "". One
    without rows, such as a list of skipped files mostly is, has its columns. Raises `InputError`
    naming the file.
    """
    table = read_columns(Path(path), may_be_empty=True)
    for name in table:
        if name in ("repaired", "calibrated"):
            table[name] = table[name] == "True"
        elif name not in _WRITTEN_TEXTS and not name.endswith("UID"):
            try:
                table[name] = pd.to_numeric(table[name])
            except ValueError as error:
                raise InputError(f"{path}: the column {name} is not numbers: {error}") from error
    return table


def write_guarded(path: Path, frame: pd.DataFrame) -> None:
    """Write a CSV for spreadsheets too: no cell of it is run as a formula. See `read_table`."""
    texts = [name for name in frame if frame[name].dtype.kind not in "iufb"]
    guarded = {
        name: frame[name].map(guard_formula, na_action="ignore").astype(object) for name in texts
    }
    # They are floats where one is missing, and would be rounded as those are.
    whole = [name for name in frame if name.endswith("InstanceNumber")]
    frame = frame.assign(**guarded).astype(dict.fromkeys(whole, "Int64"))
    write_frame(path, frame)


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as CSV or parquet, by its name: beside its place, then move it there."""
    with replace_file(path) as part:
        if path.suffix == ".parquet":
            # Numbers and ids gain nothing from a dictionary, and would be read half as fast.
            texts = frame.select_dtypes(exclude="number")
            repeated = [name for name in texts if not texts[name].is_unique]
            frame.to_parquet(part, index=False, compression="lz4", use_dictionary=repeated)
        else:
            frame.to_csv(part, index=False, float_format="%.6g")
