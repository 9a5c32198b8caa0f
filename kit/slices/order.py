"""The order of slices: along the normal of their series, from feet to head."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kit import InputError
from kit.dicom.parsing import parse_numbers

SERIES_KEY = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")

_SEPARATORS = str.maketrans("[](),'\"\\", " " * 8)


def order_slices(table: pd.DataFrame, counted: np.ndarray | None = None) -> pd.DataFrame:
    """Add `series`, `seq` (from 1) and `position` (mm), and sort by them.

    Needs the DICOM columns PatientID, StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID and
    ImagePositionPatient; uses ImageOrientationPatient and InstanceNumber if given. Positions are
    lists of numbers, or strings such as `"['-125.0', '-102.2', '126.7']"` or `-125\\0\\30`.

    A series is ordered along its slice normal (the mean over its slices), from feet to head; ties
    go by SOPInstanceUID. A series in which a position is missing goes by InstanceNumber. If
    `counted`, (N,) bool, is given, these rows alone decide on either, and the others are placed
    by what they decided: NaN, and last, if they lack it. Raises `InputError` for a position or an
    orientation that does not hold 3 or 6 numbers.
    """
    codes, names = number_series(table)
    positions = _project_positions(table, codes, len(names), counted)
    uids = table["SOPInstanceUID"].astype(str).rank(method="dense").to_numpy()
    order = np.lexsort((uids, positions, codes))
    codes = codes[order]
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    counts = np.diff(np.append(starts, len(codes)))
    ordered = table.iloc[order].reset_index(drop=True)
    ordered["series"] = pd.Series(names).take(codes).array
    ordered["seq"] = np.arange(len(codes)) - np.repeat(starts, counts) + 1
    ordered["position"] = positions[order]
    return ordered


def number_series(table: pd.DataFrame) -> tuple[np.ndarray, pd.Index]:
    """The number of each row's series, (N,), and the series' names in that order, sorted."""
    patient, study, series = (table[key].astype("string").fillna("") for key in SERIES_KEY)
    codes, names = pd.factorize(patient + "/" + study + "/" + series, sort=True)
    return codes, pd.Index(names.astype(object))


def _project_positions(
    table: pd.DataFrame, codes: np.ndarray, series: int, counted: np.ndarray | None = None
) -> np.ndarray:
    """Each slice's position along its series' normal, mm, (N,); `codes` (N,) number the series.

    `counted` as in `order_slices`; in a series without such a row, all rows count.
    """
    positions = _parse_vectors(table["ImagePositionPatient"], 3)
    planes, normals = _list_normals(table)
    if counted is None or counted.all():
        deciding = slice(None)
    else:
        deciding = counted | (np.bincount(codes[counted], minlength=series) == 0)[codes]
    mean = _average_normals(normals, planes[deciding], codes[deciding], series)
    # Written out: a matrix product may round equal positions differently.
    x, y, z = (positions[:, i] * mean[:, i][codes] for i in range(3))
    projected = x + y + z
    unplaced = np.isin(codes, codes[deciding][~np.isfinite(projected[deciding])])
    if unplaced.any() and "InstanceNumber" in table:
        numbers = pd.to_numeric(table["InstanceNumber"], errors="coerce").to_numpy(np.float64)
        projected[unplaced] = numbers[unplaced]
    return projected


def _parse_vectors(column: pd.Series, size: int) -> np.ndarray:
    """Lists of numbers or texts of them → float64 (N, size); rows of NaN where there is none."""
    present = column.notna().to_numpy()
    values, vectors = column[present], np.full((len(column), size), np.nan)
    if pd.api.types.is_string_dtype(values):  # by the column: one by one it takes twice as long
        for old, new in (("[", ""), ("]", ""), ("'", ""), (", ", "\\")):
            values = values.str.replace(old, new, regex=False)
    found = [_parse_vector(value, size) for value in values.tolist()]
    vectors[present] = np.array(found).reshape(-1, size)
    return vectors


def _parse_vector(value, size: int) -> tuple[float, ...]:
    """One list of numbers or a text of them, in which blanks and commas separate too."""
    if isinstance(value, str):
        numbers = parse_numbers(value)
        if numbers is None:
            numbers = parse_numbers("\\".join(value.translate(_SEPARATORS).split()))
    else:
        numbers = tuple(float(number) for number in value)
    if numbers is None or len(numbers) != size:
        raise InputError(f"{value!r} holds {len(numbers or ())} numbers, not {size}")
    return numbers


def _list_normals(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The number of each row's plane, (N,), and the planes' normals: z where none is known."""
    if "ImageOrientationPatient" not in table:
        return np.zeros(len(table), np.int64), np.array([[0.0, 0.0, 1.0]])
    planes, axes = np.arange(len(table)), table["ImageOrientationPatient"]
    if pd.api.types.is_string_dtype(axes):  # few different texts
        planes, axes = pd.factorize(axes, use_na_sentinel=False)
    axes = _parse_vectors(pd.Series(axes), 6)
    normals = np.cross(axes[:, :3], axes[:, 3:])
    normals[~np.isfinite(axes).all(axis=1)] = 0, 0, 1
    return planes, normals


def _average_normals(
    normals: np.ndarray, planes: np.ndarray, codes: np.ndarray, series: int
) -> np.ndarray:
    """Each series' unit normal, towards the head, (series, 3), over its slices.

    `planes` (N,) are the slices' rows of `normals`, `codes` (N,) their series.
    """
    pairs, kinds = pd.factorize(codes * len(normals) + planes)
    codes, planes = np.divmod(kinds, len(normals))
    normals, slices = normals[planes], np.bincount(pairs, minlength=len(kinds))

    def add(values):
        return np.stack([np.bincount(codes, values[:, i] * slices, series) for i in range(3)], 1)

    # Slices of one plane may be described from either side: turned to one side before the mean.
    main = add(np.abs(normals)).argmax(axis=1)
    along = np.take_along_axis(normals, main[codes][:, None], axis=1)
    mean = add(np.where(along < 0, -normals, normals))
    mean = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    # The patient's z axis points to the head; a normal across it keeps its main direction.
    down = (np.abs(mean[:, 2]) > 1e-3) & (mean[:, 2] < 0)
    mean[down] *= -1
    return mean
