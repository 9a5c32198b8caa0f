"""Of the files whose headers were read: the slice table, and what is skipped with its reason."""

from __future__ import annotations

import zipfile

import pandas as pd

from kit.files import hash_file
from kit.slices.entries import HEADER_COLUMNS
from kit.slices.order import SERIES_KEY, order_slices


def select_slices(entries: list[tuple]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What `entries.read_entry` gave of each file → (slice table, skipped files).

    The first file by path of each SOPInstanceUID is kept, and of a series those whose place in it
    is known. `slices` says what the two tables hold.
    """
    table = pd.DataFrame.from_records(
        entries, columns=["path", "reason", "repaired", *HEADER_COLUMNS]
    )
    table = table.sort_values("path", kind="stable", ignore_index=True)
    table["reason"] = table["reason"].astype(object).where(table["reason"].notna(), None)
    # In this order: a copy whose place is not known must not displace one whose place is.
    _refuse_unplaced(table)
    _refuse_repeated(table)
    return _split(table)


def _split(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The usable slices, and the rest; `seq` counts the usable slices alone.

    The rest have `series` and `position` where their place among the usable ones is known.
    """
    known = table[table["SeriesInstanceUID"].notna()]
    placed = order_slices(known, counted=known["reason"].isna().to_numpy())
    usable = placed["reason"].isna()
    placed["series"] = placed["series"].where(placed["position"].notna(), None)
    slices = placed[usable].drop(columns="reason").reset_index(drop=True)
    slices["seq"] = slices.groupby("series", sort=False).cumcount() + 1
    slices["repaired"] = slices["repaired"].astype(bool)
    slices["InstanceNumber"] = pd.to_numeric(slices["InstanceNumber"], errors="coerce")
    slices = slices.astype({"Rows": "int64", "Columns": "int64"})  # whatever was skipped beside
    unplaced = table[table["SeriesInstanceUID"].isna()]
    skipped = pd.concat([placed[~usable].drop(columns="seq"), unplaced])
    skipped = skipped.drop(columns="repaired").sort_values("path", ignore_index=True)
    return slices, skipped


def _refuse_repeated(table: pd.DataFrame) -> None:
    """Give every later file of a SOPInstanceUID its reason; the first by path is kept."""
    usable = table[table["reason"].isna()]
    repeated = usable[usable["SOPInstanceUID"].duplicated(keep=False)]
    for _, group in repeated.groupby("SOPInstanceUID", sort=False):
        first = group["path"].iloc[0]
        content = _hash_content(first)
        for index, path in group["path"].iloc[1:].items():
            same = content is not None and _hash_content(path) == content
            table.loc[index, "reason"] = (
                f"the same file as {first}"
                if same
                else f"repeats the SOPInstanceUID of {first} with other content"
            )


def _refuse_unplaced(table: pd.DataFrame) -> None:
    """A slice needs a position, or an InstanceNumber as every placed slice of its series has."""
    usable = table[table["reason"].isna()]
    missing = usable["ImagePositionPatient"].isna()
    if missing.any():
        keys = [usable[key].fillna("") for key in SERIES_KEY]
        numbered = pd.to_numeric(usable["InstanceNumber"], errors="coerce").notna()
        # One with neither stands in nobody's way: it is refused, whatever the others have.
        comparable = (numbered | missing).groupby(keys).transform("all")
        refused = usable.index[missing & ~(numbered & comparable)]
        table.loc[refused, "reason"] = (
            "ImagePositionPatient is missing, and InstanceNumber is not known for the whole series"
        )


def _hash_content(path: str) -> str | None:
    try:
        return hash_file(path)
    except (OSError, zipfile.BadZipFile):  # gone or broken since its header was read
        return None
