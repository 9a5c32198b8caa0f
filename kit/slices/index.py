"""A folder or zip of DICOM files → the slice table, and the skipped files with their reasons.

The slice table has one row per slice, grouped in series, in order from feet to head. DICOM columns
bear their keyword; ours are `path`, `series` (patient/study/series), `seq` (from 1), `position`
(mm along the slice normal) and `repaired` (the rescale intercept is wrong, and is corrected when
the pixels are read). A competition's table also has `split`, the labels and `fold`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kit import InputError, progress
from kit.files import list_archive
from kit.processes import count_cores, explain_scarcity, shield_workers
from kit.slices.entries import read_entries

if TYPE_CHECKING:
    import pandas as pd

_BATCH = 64  # headers per task: enough to hide the dispatch, few enough for a smooth bar


def index_slices(
    folder: str | Path, workers: int | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Index every DICOM slice below a folder, or in a zip without unpacking it.

    Reads headers only, in parallel. Returns the slice table and the skipped files: `path`,
    `reason`, its `code`, and, if the header could be read, its columns, `series` and `position`.
    Raises `FileNotFoundError` if the folder does not exist, `InputError` if it holds no file.
    """
    return index_files(list_files(folder), str(folder), workers)


def index_files(
    paths: list[str], source: str, workers: int | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`index_slices` of a list of files; `source` names them in errors."""
    if not paths:
        raise InputError(f"{source}: there is no file in it")
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

    def raise_error(error: OSError) -> None:
        raise error  # otherwise a folder that cannot be listed would be lost silently

    seen = set()
    for directory, children, files in os.walk(folder, followlinks=True, onerror=raise_error):
        real = os.path.realpath(directory)
        if real in seen:
            children.clear()
            continue
        seen.add(real)
        children.sort()
        yield from (os.path.join(directory, name) for name in files)


def _map_batches(batches: list[list[str]], workers: int | None) -> Iterator[list[tuple]]:
    """Read the batches in processes; a folder of a few hundred files is not worth their start.

    A joblib backend that the caller chose, such as a cluster's by `joblib.parallel_config("dask")`,
    takes them instead.
    """
    if len(batches) <= 4 or workers in (0, 1):
        yield from map(read_entries, batches)
        return
    import joblib

    backend, jobs = joblib.parallel.get_active_backend()
    if workers is None and jobs is None and isinstance(backend, joblib.parallel.LokyBackend):
        workers = count_cores()
    parallel = joblib.Parallel(workers, return_as="generator")
    with explain_scarcity():
        with shield_workers():  # the workers inherit this: the main process alone is stopped
            found = parallel(joblib.delayed(read_entries)(batch) for batch in batches)
        yield from found
