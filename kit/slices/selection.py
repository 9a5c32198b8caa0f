"""The headers that were read → the slice table, and the skipped files with their reasons."""

from __future__ import annotations

import zipfile
import zlib

import pandas as pd

from kit.files import Reason, hash_file
from kit.slices.entries import HEADER_COLUMNS
from kit.slices.order import SERIES_KEY, order_slices


def select_slices(entries: list[tuple]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Turn what `entries.read_entry` gave for each file into (slice table, skipped files).

    Of each SOPInstanceUID the first file by path is kept, and of a series the slices whose position
    is known. `kit.slices.index` describes both tables.
    """
    table = pd.DataFrame.from_records(
        entries, columns=["path", "reason", "code", "repaired", *HEADER_COLUMNS]
    )
    table = table.sort_values("path", kind="stable", ignore_index=True)
    for column in ("reason", "code"):
        table[column] = table[column].astype(object).where(table[column].notna(), None)
    # In this order: a copy without a known position must not displace one that has it.
    _reject_unplaced(table)
    _reject_repeated(table)
    return _split(table)


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
    slices["repaired"] = slices["repaired"].astype(bool)
    slices["InstanceNumber"] = pd.to_numeric(slices["InstanceNumber"], errors="coerce")
    # They are floats if a skipped row had none.
    slices = slices.astype({"Rows": "int64", "Columns": "int64"})
    unplaced = table[table["SeriesInstanceUID"].isna()]
    skipped = pd.concat([placed[~usable].drop(columns="seq"), unplaced])
    skipped = skipped.drop(columns="repaired").sort_values("path", ignore_index=True)
    return slices, skipped


def _reject_repeated(table: pd.DataFrame) -> None:
    """Give every later file of the same SOPInstanceUID its reason; the first by path is kept."""
    usable = table[table["reason"].isna()]
    repeated = usable[usable["SOPInstanceUID"].duplicated(keep=False)]
    for _, group in repeated.groupby("SOPInstanceUID", sort=False):
        first = group["path"].iloc[0]
        content = _hash_content(first)
        for index, path in group["path"].iloc[1:].items():
            same = content is not None and _hash_content(path) == content
            if same:
                reason = Reason("a copy of another file", first)
            else:
                reason = Reason("repeats a SOPInstanceUID", f"{first} has it too")
            table.loc[index, ["reason", "code"]] = str(reason), reason.code


def _reject_unplaced(table: pd.DataFrame) -> None:
    """A slice needs a position, or an InstanceNumber as every placed slice of its series has."""
    usable = table[table["reason"].isna()]
    missing = usable["ImagePositionPatient"].isna()
    if missing.any():
        keys = [usable[key].fillna("") for key in SERIES_KEY]
        numbered = pd.to_numeric(usable["InstanceNumber"], errors="coerce").notna()
        # A slice with neither does not count against the others: it is rejected anyway.
        comparable = (numbered | missing).groupby(keys).transform("all")
        rejected = usable.index[missing & ~(numbered & comparable)]
        code = "ImagePositionPatient is missing"
        detail = "InstanceNumber is not known for the whole series either"
        table.loc[rejected, ["reason", "code"]] = str(Reason(code, detail)), code


def _hash_content(path: str) -> str | None:
    try:
        return hash_file(path)
    except (OSError, zipfile.BadZipFile, zlib.error):  # gone or broken since its header was read
        return None
