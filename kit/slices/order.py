"""The order of slices: along the normal of their series, from feet to head."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kit import InputError
from kit.dicom.parsing import parse_numbers

SERIES_KEY = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")

SAME_PLACE = 0.01  # mm; below, a position is written in other digits, or rounded
_SAME_PLANE = np.cos(np.deg2rad(10))

_SEPARATORS = str.maketrans("[](),'\"\\", " " * 8)


def order_slices(table: pd.DataFrame, counted: np.ndarray | None = None) -> pd.DataFrame:
    """Add `series`, `seq` (from 1) and `position` (mm), and sort by them.

    Needs the DICOM columns PatientID, StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID and
    ImagePositionPatient; uses ImageOrientationPatient, InstanceNumber and AcquisitionNumber if
    given. Positions are lists of numbers, or strings such as `"['-125.0', '-102.2', '126.7']"` or
    `-125\\0\\30`.

    A series is ordered along its slice normal (the mean over its slices), from feet to head. Slices
    at one place go by AcquisitionNumber, then InstanceNumber, then SOPInstanceUID. A slice without
    a position is put between its neighbours by InstanceNumber; a series that lacks most positions
    goes by InstanceNumber. If `counted`, (N,) bool, is given, these rows alone decide on either,
    and the others are placed by what they decided: NaN, and last, if they lack it. Raises
    `InputError` for a position or an orientation that does not hold 3 or 6 numbers.
    """
    codes, names = number_series(table)
    positions = _project_positions(table, codes, len(names), counted)
    order = np.lexsort((positions, codes))
    codes = codes[order]
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    counts = np.diff(np.append(starts, len(codes)))
    order = _order_ties(table, order, codes, positions)
    ordered = table.iloc[order].reset_index(drop=True)
    ordered["series"] = pd.Series(names).take(codes).array
    ordered["seq"] = np.arange(len(codes)) - np.repeat(starts, counts) + 1
    ordered["position"] = positions[order]
    return ordered


def find_positions(table: pd.DataFrame, counted: np.ndarray) -> np.ndarray:
    """The `position` that `order_slices` gives each row, (N,), NaN where it cannot be known."""
    codes, names = number_series(table)
    return _project_positions(table, codes, len(names), counted)


def find_tilted(table: pd.DataFrame) -> np.ndarray:
    """Which slices lie more than 10° off the plane of most of their series, (N,) bool."""
    codes, _ = number_series(table)
    planes, normals = _list_normals(table)
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    cosines = np.abs((normals[planes] * normals[planes[first]][codes]).sum(axis=1))
    # If all lie within half of it about the first, no two are further apart.
    doubtful = np.isin(codes, codes[cosines < np.cos(np.arccos(_SAME_PLANE) / 2)])
    tilted = np.zeros(len(table), bool)
    for rows in _split_rows(doubtful, codes):
        kinds, inverse, slices = np.unique(planes[rows], return_inverse=True, return_counts=True)
        near = np.abs(normals[kinds] @ normals[kinds].T) >= _SAME_PLANE
        tilted[rows] = ~near[(near @ slices).argmax()][inverse] & normals[planes[rows]].any(axis=1)
    return tilted


def _split_rows(chosen: np.ndarray, codes: np.ndarray) -> list[np.ndarray]:
    """The numbers of the chosen rows, an array a series; `chosen` (N,) bool, `codes` (N,)."""
    rows = np.flatnonzero(chosen)
    return [group.to_numpy() for _, group in pd.Series(rows).groupby(codes[rows])]


def _order_ties(
    table: pd.DataFrame, order: np.ndarray, codes: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """`order` with the slices at one place of their series in an order that is always the same.

    `order` (N,) sorts the rows by series and position, `codes` (N,) are their series in that order.
    """
    numbers = [_read_numbers(table, f"{kind}Number") for kind in ("Instance", "Acquisition")]
    known = np.isfinite(numbers).any()
    along = np.nan_to_num(positions[order], nan=np.finfo(float).max)
    apart = np.diff(along, prepend=np.nan) > (SAME_PLACE if known else 0)
    place = np.cumsum(apart | (np.diff(codes, prepend=-1) != 0))
    tied = np.bincount(place)[place] > 1
    if not tied.any():
        return order
    rows = order[tied]
    uids = table["SOPInstanceUID"].iloc[rows].astype(str)
    if uids.str.fullmatch(r"[0-9.]+").all():  # 2 before 10
        uids = uids.str.replace(r"\d+", lambda found: found[0].zfill(64), regex=True)
    keys = (uids.rank(method="dense"), *(number[rows] for number in numbers), place[tied])
    order[tied] = rows[np.lexsort(keys)]
    return order


def _read_numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    """A column's whole numbers, (N,) float64; NaN where there is none."""
    if column not in table:
        return np.full(len(table), np.nan)
    return pd.to_numeric(table[column], errors="coerce").to_numpy(np.float64, na_value=np.nan)


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
    deciding = np.ones(len(table), bool) if counted is None else counted
    deciding = deciding | (np.bincount(codes[deciding], minlength=series) == 0)[codes]
    mean = _average_normals(normals, planes[deciding], codes[deciding], series)
    # Written out: a matrix product may round equal positions differently.
    x, y, z = (positions[:, i] * mean[:, i][codes] for i in range(3))
    projected = x + y + z
    unplaced = np.isin(codes, codes[~np.isfinite(projected)])
    numbers, passes = (
        _read_numbers(table, f"{kind}Number") for kind in ("Instance", "Acquisition")
    )
    passes = np.nan_to_num(passes, nan=-1)
    for rows in _split_rows(unplaced, codes):
        lost = ~np.isfinite(projected[rows])
        most_lost = 2 * (lost & deciding[rows]).sum() > deciding[rows].sum()
        if most_lost and np.isfinite(numbers[rows[~lost]]).all():
            projected[rows] = numbers[rows]
            continue
        for row in rows[lost]:
            placed = rows[~lost & deciding[rows] & (passes[rows] == passes[row])]
            projected[row] = _place_by_number(numbers[row], numbers[placed], projected[placed])
    return projected


def _place_by_number(number: float, numbers: np.ndarray, positions: np.ndarray) -> float:
    """The position of a slice among others of known number and position, both (P,).

    NaN where it has no number of its own, or the others do not go along the series by theirs.
    """
    order = np.argsort(numbers)[: np.isfinite(numbers).sum()]
    numbers, positions = numbers[order], positions[order]
    steps = np.diff(positions) * np.diff(numbers)
    monotonic = len(steps) and (np.all(steps > 0) or np.all(steps < 0))
    if not monotonic or number in numbers or np.abs(numbers - number).min() > len(numbers):
        return np.nan
    place = int(np.searchsorted(numbers, number))
    right = min(max(place, 1), len(numbers) - 1)  # at an end, the step there is continued
    step = np.diff(positions[right - 1 : right + 1]) / np.diff(numbers[right - 1 : right + 1])
    return float(positions[right] + (number - numbers[right]) * step[0])


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
    """The number of each row's plane, (N,), and the planes' normals: 0 where none is known."""
    if "ImageOrientationPatient" not in table:
        return np.zeros(len(table), np.int64), np.zeros((1, 3))
    planes, axes = np.arange(len(table)), table["ImageOrientationPatient"]
    if pd.api.types.is_string_dtype(axes):  # few different texts
        planes, axes = pd.factorize(axes, use_na_sentinel=False)
    axes = _parse_vectors(pd.Series(axes), 6)
    normals = np.cross(axes[:, :3], axes[:, 3:])
    return planes, np.nan_to_num(normals)


def _average_normals(
    normals: np.ndarray, planes: np.ndarray, codes: np.ndarray, series: int
) -> np.ndarray:
    """Each series' unit normal, towards the head, (series, 3), over its slices; else z.

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
    mean[~mean.any(axis=1)] = 0, 0, 1
    mean = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    # The patient's z axis points to the head; a normal across it keeps its main direction.
    down = (np.abs(mean[:, 2]) > 1e-3) & (mean[:, 2] < 0)
    mean[down] *= -1
    return mean
