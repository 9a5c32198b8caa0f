"""A folder or zip of DICOM files → the slice table, and what was skipped with its reason.

The slice table has one row a slice, grouped in series, in order from feet to head. DICOM columns
bear their keyword; ours are `path`, `series` (patient/study/series), `seq` (from 1), `position`
(mm along the slice normal) and `repaired` (the rescale intercept was wrong and is put right when
the pixels are read). A competition's table also has `split`, the labels and `fold`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from kit import progress
from kit.files import list_archive
from kit.processes import count_cores
from kit.slices.entries import read_entries

if TYPE_CHECKING:
    import pandas as pd

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
    from kit.slices.selection import select_slices

    return select_slices(rows)


def order_slices(table: pd.DataFrame) -> pd.DataFrame:
    """Add `series`, `seq` and `position`, and sort by them: `order.order_slices`."""
    from kit.slices import order

    return order.order_slices(table)


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
    joblib = sys.modules.get("joblib")  # who chose a backend of its has imported it
    if len(batches) <= 4 or workers == 1:
        yield from map(read_entries, batches)
    elif joblib and not isinstance(
        joblib.parallel.get_active_backend()[0], joblib.parallel.LokyBackend
    ):
        yield from joblib.Parallel(workers, return_as="generator")(
            joblib.delayed(read_entries)(batch) for batch in batches
        )
    else:
        # Forked where that is safe: new processes would import pydicom first, each by itself.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        with ProcessPoolExecutor(workers or count_cores(), context) as pool:
            found = pool.map(read_entries, batches)
            # Imported while they read: pandas takes as long as a thousand headers.
            from kit.slices import selection  # noqa: F401

            yield from found
