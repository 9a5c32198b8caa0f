"""The order of slices: along the normal of their series, from feet to head."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.compute as pc
import pyarrow.csv

SERIES_KEY = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")

_COMMAS = bytes.maketrans(b"\\", b",")
_BLANKS = bytes.maketrans(b"[](),'\"\\", b" " * 8)


def order_slices(table: pd.DataFrame, counted: np.ndarray | None = None) -> pd.DataFrame:
    """Add `series`, `seq` (from 1) and `position` (mm), and sort by them.

    Needs the DICOM columns PatientID, StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID and
    ImagePositionPatient; uses ImageOrientationPatient and InstanceNumber where given. Positions
    are lists of numbers or strings such as `"['-125.0', '-102.2', '126.7']"` or `-125\\0\\30`.

    A series is ordered along its slice normal (the mean over its slices), from feet to head; ties
    go by SOPInstanceUID. A series in which a position is missing goes by InstanceNumber. Where
    `counted`, (N,) bool, is given, these rows alone decide on either, and the others are placed
    by what they decided: NaN, and behind, where they lack it.
    """
    codes, names = number_series(table)
    positions = project_positions(table, codes, len(names), counted)
    order = _sort_places(codes, positions)
    _break_ties(order, codes, positions, table["SOPInstanceUID"])
    codes = codes[order]
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    counts = np.diff(np.append(starts, len(codes)))
    ordered = table.iloc[order].reset_index(drop=True)
    ordered["series"] = pd.Series(names).take(codes).array
    ordered["seq"] = np.arange(len(codes)) - np.repeat(starts, counts) + 1
    ordered["position"] = positions[order]
    return ordered


def number_series(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The number of each row's series, (N,), and the series' names in that order, sorted."""
    codes, names = np.zeros(len(table), np.int64), [""]
    for key in SERIES_KEY:
        parts, values = pd.factorize(table[key], use_na_sentinel=False)
        values = ["" if pd.isna(value) else str(value) for value in values.to_numpy(object)]
        codes, pairs = pd.factorize(codes * len(values) + parts)
        pairs = [divmod(pair, len(values)) for pair in pairs]
        names = [f"{names[before]}/{values[part]}" for before, part in pairs]
    names = np.array([name[1:] for name in names], dtype=object)
    # Two keys may read the same once joined: they are one series then.
    places, names = pd.factorize(names, sort=True)
    return places[codes], names


def project_positions(
    table: pd.DataFrame, codes: np.ndarray, series: int, counted: np.ndarray | None = None
) -> np.ndarray:
    """Where each slice lies along its series' normal, mm, (N,); `codes` (N,) number the series.

    `counted` as in `order_slices`; a series without such a row counts them all.
    """
    positions = parse_vectors(table["ImagePositionPatient"], 3)
    planes, normals = _list_normals(table)
    if counted is None or counted.all():
        deciding = slice(None)
    else:
        deciding = counted | (np.bincount(codes[counted], minlength=series) == 0)[codes]
    mean = _average_normals(normals, planes[deciding], codes[deciding], series)
    # Written out: a matrix product may round equal positions differently.
    projected = sum(positions[:, i] * mean[:, i][codes] for i in range(3))
    unplaced = np.isin(codes, codes[deciding][~np.isfinite(projected[deciding])])
    if unplaced.any() and "InstanceNumber" in table:
        numbers = pd.to_numeric(table["InstanceNumber"], errors="coerce").to_numpy(np.float64)
        projected[unplaced] = numbers[unplaced]
    return projected


def parse_vectors(column: pd.Series, size: int) -> np.ndarray:
    """Lists of numbers or strings of them → float64 (N, size); NaN rows where there is none.

    Raises `ValueError` where a value holds another number of numbers.
    """
    present = column.notna().to_numpy()
    values = column if present.all() else column[present]
    rows = _parse_texts(values, size) if pd.api.types.is_string_dtype(values) else None
    if rows is None:
        rows = np.array([parse_vector(value, size) for value in values]).reshape(-1, size)
    if present.all():
        return rows
    vectors = np.full((len(column), size), np.nan)
    vectors[present] = rows
    return vectors


def parse_vector(value, size: int) -> np.ndarray:
    """One list of numbers or string of them → float64 (size,). Raises `ValueError`."""
    if isinstance(value, str):
        value = value.encode("utf-8").translate(_BLANKS).split()
    vector = np.array([float(number) for number in value], dtype=np.float64)
    if vector.shape != (size,):
        raise ValueError(f"holds {len(vector)} numbers, not {size}")
    return vector


def _list_normals(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The number of each row's plane, (N,), and the planes' normals: z where none is known."""
    if "ImageOrientationPatient" not in table:
        return np.zeros(len(table), np.int64), np.array([[0.0, 0.0, 1.0]])
    planes, axes = np.arange(len(table)), table["ImageOrientationPatient"]
    if pd.api.types.is_string_dtype(axes):  # few different texts
        planes, axes = pd.factorize(axes, use_na_sentinel=False)
    axes = parse_vectors(pd.Series(axes), 6)
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


def _sort_places(codes: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """As `np.lexsort((positions, codes))`, but for the order of ties, in a fifth of the time.

    NumPy sorts numbers without regard to ties by vector instructions, 16-bit ones by counting.
    """
    order = np.argsort(positions)
    for shift in range(0, int(codes.max(initial=0)).bit_length(), 16):
        digits = (codes[order] >> shift).astype(np.uint16)
        order = order[np.argsort(digits, kind="stable")]
    return order


def _break_ties(
    order: np.ndarray, codes: np.ndarray, positions: np.ndarray, names: pd.Series
) -> None:
    """Sort the slices at one place of a series by SOPInstanceUID, within `order`."""
    sorted_codes, places = codes[order], positions[order]
    same = (np.diff(sorted_codes) == 0) & ((np.diff(places) == 0) | np.isnan(places[1:]))
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    if len(tied):
        rows = np.sort(order[tied])
        uids = pd.factorize(names.iloc[rows].astype(str), sort=True)[0]
        order[tied] = rows[np.lexsort((uids, positions[rows], codes[rows]))]


def _parse_texts(texts: pd.Series, size: int) -> np.ndarray | None:
    """All texts at once, (N, size); None unless each surely holds `size` numbers."""
    try:
        items = pyarrow.array(texts, pyarrow.string())
        if isinstance(items, pyarrow.ChunkedArray):  # of tables that were put together
            items = items.combine_chunks()
        whole = pyarrow.ListArray.from_arrays([0, len(items)], items)
        lines = pc.binary_join(whole, "\n")[0].as_buffer().to_pybytes()
        table = pyarrow.csv.read_csv(
            io.BytesIO(lines.translate(_COMMAS, b"[]()'\"")),
            pyarrow.csv.ReadOptions(column_names=[str(i) for i in range(size)]),
            pyarrow.csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
            pyarrow.csv.ConvertOptions(
                column_types={str(i): pyarrow.float64() for i in range(size)}, null_values=[]
            ),
        )
    except (ValueError, TypeError):
        return None
    if len(table) != len(texts):
        return None
    return np.array([column.to_numpy() for column in table.columns]).T  # columns stay in a row
