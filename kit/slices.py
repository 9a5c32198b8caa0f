"""A folder or zip of DICOM files → the slice table, and what was skipped with its reason.

The slice table has one row a slice, grouped in series, in order from feet to head. DICOM columns
bear their keyword; ours are `path`, `series` (patient/study/series), `seq` (from 1), `position`
(mm along the slice normal) and `repaired` (the rescale intercept was wrong and is put right when
the pixels are read). A competition's table also has `split`, the labels and `fold`.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import joblib
import pandas as pd
from joblib.parallel import LokyBackend, get_active_backend

from kit import progress
from kit.archives import list_archive, open_file
from kit.entries import HEADER_COLUMNS, read_entries
from kit.order import SERIES_KEY, order_slices

_BATCH = 64  # headers a task: large enough to hide the dispatch, small enough for a smooth bar


def index_slices(
    folder: str | Path, workers: int | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Index every DICOM slice below a folder, or in a zip without unpacking it.

    Reads headers only, in parallel. Returns the slice table and the skipped files: `path`,
    `reason`, and where the header could be read its columns, `series` and `position`. Raises
    `FileNotFoundError` where the folder is not there, `ValueError` where it holds no file.
    """
    return index_files(list_files(folder), str(folder), workers)


def index_files(
    paths: list[str], source: str, workers: int | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`index_slices` over a list of files, said to be from `source`."""
    if not paths:
        raise ValueError(f"{source}: there is no file in it")
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    rows = []
    with progress.open_bar("Reading headers", len(paths), "files") as bar:
        for found in _map_batches(batches, workers):
            rows.extend(found)
            bar.update(len(found))
    columns = ["path", "reason", "repaired", *HEADER_COLUMNS]
    table = pd.DataFrame.from_records(rows, columns=columns)
    table = table.sort_values("path", kind="stable", ignore_index=True)
    table["reason"] = table["reason"].astype(object).where(table["reason"].notna(), None)
    _refuse_repeated(table)
    _refuse_unplaced(table)
    return _split(table)


def _split(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The usable slices, and the rest; `seq` counts the usable slices alone."""
    placed = order_slices(table[table["SeriesInstanceUID"].notna()])
    usable = placed["reason"].isna()
    slices = placed[usable].drop(columns="reason").reset_index(drop=True)
    slices["seq"] = slices.groupby("series", sort=False).cumcount() + 1
    slices["repaired"] = slices["repaired"].astype(bool)
    slices["InstanceNumber"] = pd.to_numeric(slices["InstanceNumber"], errors="coerce")
    slices = slices.astype({"Rows": "int64", "Columns": "int64"})  # whatever was skipped beside
    unplaced = table[table["SeriesInstanceUID"].isna()]
    skipped = pd.concat([placed[~usable].drop(columns="seq"), unplaced])
    skipped = skipped.drop(columns="repaired").sort_values("path", ignore_index=True)
    return slices, skipped


def list_files(folder: str | Path) -> list[str]:
    """All files below a folder, sorted; or all members of a zip, as `archive.zip/member`."""
    folder = Path(folder)
    if folder.is_file() and folder.suffix.lower() == ".zip":
        return list_archive(folder)
    if folder.is_file():
        return [str(folder)]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder or zip archive")
    return sorted(_walk(folder))


def _walk(folder: Path) -> Iterator[str]:
    """Files below a folder, links followed, no real folder entered twice."""

    def refuse(error: OSError):
        raise error  # a folder that cannot be listed would be lost without a word

    seen = set()
    for directory, children, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(directory)
        if real in seen:
            children.clear()
            continue
        seen.add(real)
        children.sort()
        yield from (os.path.join(directory, name) for name in files)


def _map_batches(batches: list[list[str]], workers: int | None) -> Iterator[list[tuple]]:
    """Read the batches over processes; a folder of a few hundred files is not worth their start.

    A joblib backend that the caller chose, as a cluster's with `joblib.parallel_config("dask")`,
    takes them instead.
    """
    if len(batches) <= 4 or workers == 1:
        yield from map(read_entries, batches)
    elif not isinstance(get_active_backend()[0], LokyBackend):  # joblib's own choice
        yield from joblib.Parallel(workers, return_as="generator")(
            joblib.delayed(read_entries)(batch) for batch in batches
        )
    else:
        # Forked where that is safe: new processes would import pydicom first, each by itself.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        with ProcessPoolExecutor(workers or joblib.cpu_count(), context) as pool:
            yield from pool.map(read_entries, batches)


def _refuse_repeated(table: pd.DataFrame) -> None:
    """Give every later file of a SOPInstanceUID its reason; the first by path is kept."""
    usable = table[table["reason"].isna()]
    repeated = usable[usable["SOPInstanceUID"].duplicated(keep=False)]
    for _, group in repeated.groupby("SOPInstanceUID", sort=False):
        first = group["path"].iloc[0]
        content = _hash_file(first)
        for index, path in group["path"].iloc[1:].items():
            same = content is not None and _hash_file(path) == content
            table.loc[index, "reason"] = (
                f"the same file as {first}"
                if same
                else f"repeats the SOPInstanceUID of {first} with other content"
            )


def _refuse_unplaced(table: pd.DataFrame) -> None:
    """A slice needs a position, or an InstanceNumber as every slice of its series has."""
    known = table[table["SeriesInstanceUID"].notna()]
    missing = known["ImagePositionPatient"].isna()
    if missing.any():
        keys = [known[key].fillna("") for key in SERIES_KEY]
        numbers = pd.to_numeric(known["InstanceNumber"], errors="coerce")
        numbered = numbers.notna().groupby(keys).transform("all")
        refused = known.index[missing & ~numbered]
        table.loc[refused, "reason"] = table.loc[refused, "reason"].fillna(
            "ImagePositionPatient is missing, and InstanceNumber is not known for the whole series"
        )
        table.loc[refused, "SeriesInstanceUID"] = None


def _hash_file(path: str) -> bytes | None:
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (OSError, zipfile.BadZipFile):  # gone or broken since its header was read
        return None
