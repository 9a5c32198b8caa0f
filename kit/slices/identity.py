"""Which slices belong together where UIDs and PatientIDs do not tell, and which is there twice."""

from __future__ import annotations

import zipfile
import zlib

import numpy as np
import pandas as pd

from kit.dicom.parsing import DicomError, parse_numbers
from kit.dicom.pixels import read_hounsfield
from kit.files import Reason, hash_file
from kit.slices.entries import GROUP_COLUMNS
from kit.slices.order import SAME_PLACE, SERIES_KEY, find_positions

_STUDY = list(SERIES_KEY[:2])
_SHAPE = ["Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"]


def add_note(table: pd.DataFrame, rows: pd.Index, note: str) -> None:
    """Add a sentence to the `note` of these rows."""
    if len(rows):
        before = table.loc[rows, "note"]
        table.loc[rows, "note"] = [f"{text}; {note}" if text else note for text in before]


def set_reason(table: pd.DataFrame, rows: pd.Index | int, reason: Reason) -> None:
    """Leave these rows out, for a reason."""
    if isinstance(rows, int) or len(rows):
        table.loc[rows, ["reason", "code"]] = str(reason), reason.code


def fill_blanks(table: pd.DataFrame) -> None:
    """Give a slice without a study or a patient that of its series, if the series has one alone.

    An anonymizer may have given another patient the same UIDs. Slices of another frame of
    reference, or at places that are another scan's, are left blank, which is noted.
    """
    series = ["SeriesInstanceUID", "FrameOfReferenceUID"]
    for column, keys in (
        ("StudyInstanceUID", series),
        ("PatientID", ["StudyInstanceUID", *series]),
    ):
        blank = table[column].isna() & table["SeriesInstanceUID"].notna()
        if not blank.any():
            continue
        groups = table.groupby(keys, dropna=False)[column]
        doubtful = blank & table.groupby("SeriesInstanceUID")[column].transform("count").gt(0)
        blank &= groups.transform("nunique") == 1
        number = groups.ngroup()
        concerned = table[number.isin(number[blank])]
        for _, group in concerned.groupby(number, sort=False):
            if _are_of_two_scans(group, blank[group.index].to_numpy()):
                blank[group.index] = False
        table.loc[blank, column] = groups.transform("first")[blank]
        add_note(table, table.index[blank], f"{column} is blank and taken from its series")
        left = table.index[doubtful & ~blank]
        add_note(table, left, f"{column} is blank, and its series may be another's of the same UID")


def _are_of_two_scans(group: pd.DataFrame, blank: np.ndarray) -> bool:
    """Whether some slices of a series, (N,) bool, lie among the others as those of another scan.

    They are nearer to one of them than three quarters of the least distance between these.
    """
    one = group.assign(**dict.fromkeys(_STUDY, ""))
    positions = find_positions(one, np.ones(len(group), bool))
    order = np.argsort(positions)[: np.isfinite(positions).sum()]
    steps, mixed = np.diff(positions[order]), np.diff(blank[order])
    known = np.diff(positions[order][~blank[order]])
    least = 0.75 * known[known > SAME_PLACE].min(initial=np.inf)
    return bool((steps[mixed] < (least if np.isfinite(least) else SAME_PLACE)).any())


def join_series(table: pd.DataFrame) -> None:
    """Join series of a study whose headers say that they are one, apart from their UID.

    They have frame of reference, series number and description, acquisition number, plane, spacing
    and thickness in common, and no two slices one position. Where a study has several series of one
    slice and the header does not say as much, that is noted.
    """
    same = [*_STUDY, *GROUP_COLUMNS, "SeriesDescription", *_SHAPE, "SliceThickness"]
    columns = [*same, "SeriesInstanceUID", "ImagePositionPatient"]
    usable = table.loc[table["reason"].isna(), columns]
    series = usable.groupby(_STUDY, dropna=False)["SeriesInstanceUID"].transform("nunique")
    usable = usable[series > 1]
    if usable.empty:
        return
    number = table.groupby(list(SERIES_KEY), dropna=False).ngroup()
    sizes = number[usable.index].value_counts()
    stated = usable[["FrameOfReferenceUID", "SeriesNumber", "ImagePositionPatient"]].notna()
    names, joined = {}, []  # the UID of each joined series by its number, and their slices
    for _, group in usable[stated.all(axis=1)].groupby(same, dropna=False, sort=False):
        several = number[group.index].unique()
        whole = len(several) > 1 and sizes[several].sum() == len(group)
        if whole and not group["ImagePositionPatient"].map(parse_numbers).duplicated().any():
            names.update(dict.fromkeys(several, group["SeriesInstanceUID"].iloc[0]))
            joined.extend(group.index)
    if joined:
        theirs = number.isin(names)
        table.loc[theirs, "SeriesInstanceUID"] = number[theirs].map(names)
        add_note(table, pd.Index(joined), "joined: it is of one series but for the UID")
        usable = usable.drop(joined)
    single = usable[number[usable.index].map(sizes) == 1]
    among = single.groupby([*_STUDY, *_SHAPE], dropna=False).transform("size") > 2
    add_note(table, single.index[among], "one of several series of a single slice in its study")


def reject_repeated(table: pd.DataFrame, keys: list[str]) -> None:
    """Of the files with equal `keys` keep one: the first by path whose pixels can be read."""
    usable = table.loc[table["reason"].isna(), ["path", *keys]]
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
