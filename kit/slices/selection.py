"""The headers that were read → the slice table, and the skipped files with their reasons."""

from __future__ import annotations

import pandas as pd

from kit.files import Reason
from kit.slices.entries import ENTRY_COLUMNS, GROUP_COLUMNS
from kit.slices.identity import add_note, fill_blanks, join_series, reject_repeated, set_reason
from kit.slices.order import SAME_PLACE, SERIES_KEY, find_positions, find_tilted, order_slices

_PASS = "AcquisitionNumber"


def select_slices(entries: list[tuple], unique: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Turn what `entries.read_entry` gave for each file into (slice table, skipped files).

    A SOPInstanceUID counts within its patient and series or, if they are `unique`, among all
    files: one file of each is kept. So are the slices whose position is known, and the plane that
    of their series. `kit.slices.index` describes both tables.
    """
    table = pd.DataFrame.from_records(entries, columns=ENTRY_COLUMNS)
    table = table.sort_values("path", kind="stable", ignore_index=True)
    for column in ("reason", "code", "note"):
        table[column] = table[column].astype(object).where(table[column].notna(), None)
    fill_blanks(table)
    join_series(table)
    # In this order: a copy without a known position must not displace one that has it.
    _reject_tilted(table)
    _reject_unplaced(table)
    reject_repeated(table, [*([] if unique else SERIES_KEY), "SOPInstanceUID"])
    return _split(table.drop(columns=[column for column in GROUP_COLUMNS if column != _PASS]))


def _split(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The usable slices, and the rest; `seq` counts the usable slices alone.

    The rest have `series` and `position` if their place among the usable ones is known.
    """
    known = table[table["SeriesInstanceUID"].notna()]
    placed = order_slices(known, counted=known["reason"].isna().to_numpy())
    usable = placed["reason"].isna()
    placed["series"] = placed["series"].where(placed["position"].notna(), None)
    slices = placed[usable].drop(columns=["reason", "code"]).reset_index(drop=True)
    slices["seq"] = slices.groupby("series", sort=False).cumcount() + 1
    slices["InstanceNumber"] = pd.to_numeric(slices["InstanceNumber"], errors="coerce")
    # They are floats if a skipped row had none.
    for column, kind in (("repaired", bool), ("Rows", "int64"), ("Columns", "int64")):
        slices[column] = slices[column].astype(kind)
    _note_places(slices)
    unplaced = table[table["SeriesInstanceUID"].isna()]
    skipped = pd.concat([placed[~usable].drop(columns="seq"), unplaced])
    skipped = skipped.drop(columns=["repaired", "note", _PASS]).sort_values(
        "path", ignore_index=True
    )
    return slices.drop(columns=_PASS), skipped


def _note_places(slices: pd.DataFrame) -> None:
    """Note slices that lack a position or share one; `slices` are in order."""
    lost = slices["ImagePositionPatient"].isna()
    add_note(
        slices, slices.index[lost], "its position is missing and its InstanceNumber gave its place"
    )
    near = slices.groupby("series", sort=False)["position"].diff() < SAME_PLACE
    near |= near.shift(-1, fill_value=False)
    add_note(slices, slices.index[near], "another slice of its series is at the same place")


def _reject_tilted(table: pd.DataFrame) -> None:
    usable = table.loc[table["reason"].isna(), [*SERIES_KEY, "ImageOrientationPatient"]]
    tilted = usable.index[find_tilted(usable)]
    set_reason(table, tilted, Reason("plane is more than 10° off that of its series"))


def _reject_unplaced(table: pd.DataFrame) -> None:
    """A slice needs a position, or an InstanceNumber that tells its place among the others."""
    usable = table["reason"].isna()
    if (usable & table["ImagePositionPatient"].isna()).any():
        known = table[table["SeriesInstanceUID"].notna()]
        positions = find_positions(known, counted=known["reason"].isna().to_numpy())
        lost = known.index[known["reason"].isna() & pd.isna(positions)]
        detail = "InstanceNumber does not tell its place either"
        set_reason(table, lost, Reason("ImagePositionPatient is missing", detail))
