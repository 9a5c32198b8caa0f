"""Which slices belong together where UIDs and PatientIDs do not tell, and which is there twice."""

from __future__ import annotations

import zipfile
import zlib

import pandas as pd

from kit.dicom.parsing import DicomError, parse_numbers
from kit.dicom.pixels import read_hounsfield
from kit.files import Reason, hash_file
from kit.slices.entries import GROUP_COLUMNS
from kit.slices.order import SERIES_KEY

_STUDY = list(SERIES_KEY[:2])
_SHAPE = ["Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"]


def add_note(table: pd.DataFrame, rows: pd.Index, note: str) -> None:
    """Add a sentence to the `note` of these rows."""
    if len(rows):
        before = table.loc[rows, "note"]
        table.loc[rows, "note"] = [f"{text}; {note}" if text else note for text in before]


def set_reason(table: pd.DataFrame, rows: pd.Index | int, reason: Reason) -> None:
    """Leave these rows out, for a reason."""
    table.loc[rows, ["reason", "code"]] = str(reason), reason.code


def fill_blanks(table: pd.DataFrame) -> None:
    """Give a slice without a study or a patient that of its series, if the series has one alone."""
    for column, keys in (
        ("StudyInstanceUID", ["SeriesInstanceUID"]),
        ("PatientID", ["StudyInstanceUID", "SeriesInstanceUID"]),
    ):
        blank = table[column].isna() & table["SeriesInstanceUID"].notna()
        if not blank.any():
            continue
        groups = table.groupby(keys, dropna=False)[column]
        blank &= groups.transform("nunique") == 1
        table.loc[blank, column] = groups.transform("first")[blank]
        add_note(table, table.index[blank], f"{column} is blank and taken from its series")


def join_series(table: pd.DataFrame) -> None:
    """Join series of a study whose headers say that they are one, apart from their UID.

    They have frame of reference, series and acquisition number, plane, spacing and thickness in
    common, and no two slices one position. Where a study has several series of one slice and the
    header does not say as much, that is noted.
    """
    usable = table[table["reason"].isna()]
    series = usable.groupby(_STUDY, dropna=False)["SeriesInstanceUID"].transform("nunique")
    usable = usable[series > 1]
    if usable.empty:
        return
    same = [*_STUDY, *GROUP_COLUMNS, *_SHAPE, "SliceThickness"]
    stated = usable[["FrameOfReferenceUID", "SeriesNumber", "ImagePositionPatient"]].notna()
    for _, group in usable[stated.all(axis=1)].groupby(same, dropna=False, sort=False):
        uids = group["SeriesInstanceUID"].unique()
        positions = group["ImagePositionPatient"].map(parse_numbers)
        if len(uids) > 1 and not positions.duplicated().any():
            study = group[_STUDY].iloc[0].fillna("")
            theirs = table["SeriesInstanceUID"].isin(uids)
            theirs &= table[_STUDY].fillna("").eq(study).all(axis=1)
            if (theirs & table["reason"].isna()).sum() == len(group):  # these are whole series
                table.loc[theirs, "SeriesInstanceUID"] = uids[0]
                add_note(table, group.index, "joined: it is of one series but for the UID")
                usable = usable.drop(group.index)
    single = usable.groupby([*_STUDY, "SeriesInstanceUID"], dropna=False)["path"].transform("size")
    single = usable[single == 1]
    several = single.groupby([*_STUDY, *_SHAPE], dropna=False)["path"].transform("size") > 2
    add_note(table, single.index[several], "one of several series of a single slice in its study")


def reject_repeated(table: pd.DataFrame, keys: list[str]) -> None:
    """Of the files with equal `keys` keep one: the first by path whose pixels can be read."""
    usable = table[table["reason"].isna()]
    repeated = usable[usable.duplicated(keys, keep=False)]
    for _, paths in repeated.groupby(keys, sort=False, dropna=False)["path"]:
        contents = paths.map(_hash_content)
        kept = paths.index[0]
        if contents.nunique(dropna=False) > 1:
            kept = next((row for row, path in paths.items() if not _find_fault(path)), kept)
        for row, path in paths.drop(kept).items():
            if contents[row] is not None and contents[row] == contents[kept]:
                reason = Reason("a copy of another file", paths[kept])
            else:
                repeats = Reason("repeats a SOPInstanceUID", f"{paths[kept]} has it too")
                reason = _find_fault(path) or repeats
            set_reason(table, row, reason)


def _find_fault(path: str) -> Reason | None:
    try:
        read_hounsfield(path)
    except DicomError as error:
        return Reason(error.code, error.detail)
    return None


def _hash_content(path: str) -> str | None:
    try:
        return hash_file(path)
    except (OSError, zipfile.BadZipFile, zlib.error):  # gone or broken since its header was read
        return None
