"""A folder or zip of DICOM files → the slice table, and the skipped files with their reasons.

The slice table has one row per slice, grouped in series, in order from feet to head. DICOM columns
bear their keyword; ours are `path`, `series` (patient/study/series), `seq` (from 1), `position`
(mm along the slice normal), `repaired` (the rescale intercept is wrong, and is corrected when the
pixels are read) and `note` (what is unusual about the slice and does not keep it from being used,
in fixed phrases joined by semicolons, or None). A competition's table also has `split`, the labels
and `fold`.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from kit import InputError, escape_controls, progress
from kit.files import Reason, list_archive
from kit.processes import count_cores, explain_scarcity, shield_workers
from kit.progress import log
from kit.slices.entries import read_entries, refuse_entry

if TYPE_CHECKING:
    import pandas as pd

_ENDING = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_BATCH = 64  # headers per task: enough to hide the dispatch, few enough for a smooth bar


def index_slices(
    folder: str | Path, workers: int | None = None, skip_unreadable: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Index every DICOM slice below a folder, or in a zip without unpacking it.

    Reads headers only, in parallel; NIfTI images (.nii, .nii.gz, with nibabel) wholly. Returns the
    slice table and the skipped files: `path`, `reason`, its `code`, and, if the header could be
    read, its columns, `series` and `position`. What is noted of slices is also logged. Raises
    `FileNotFoundError` if the folder does not exist, `InputError` if it holds no file, and
    `OSError` for a folder below it that cannot be listed; with `skip_unreadable` that is among the
    skipped files instead.
    """
    closed: list[OSError] | None = [] if skip_unreadable else None
    return index_files(list_files(folder, closed), str(folder), workers, closed=closed)


def index_files(
    paths: list[str],
    source: str,
    workers: int | None = None,
    unique: bool = False,
    closed: list[OSError] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`index_slices` of a list of files; `source` names them in errors.

    `unique`: no two slices have one SOPInstanceUID, whatever their series. `closed`: what
    `list_files` added to it.
    """
    if not paths:
        raise closed[0] if closed else InputError(f"{source}: there is no file in it")
    files = _name_volumes(paths)
    batches = [files[start : start + _BATCH] for start in range(0, len(files), _BATCH)]
    rows = []
    with progress.open_bar("Reading headers", len(paths), "files") as bar:
        for batch, found in zip(batches, _map_batches(batches, workers), strict=True):
            rows.extend(found)
            bar.update(len(batch))
    for error in closed or ():
        reason = Reason("folder cannot be listed", error.strerror or str(error))
        rows.append(refuse_entry(escape_controls(str(error.filename)), reason))
        log.warning("%s: %s; its files are left out", rows[-1][0], reason)
    from kit.slices.selection import select_slices

    slices, skipped = select_slices(rows, unique)
    notes = slices["note"].dropna().str.split("; ").explode()
    for note, count in notes.value_counts().items():
        log.warning("%s: %s", progress.format_count(count, "slice"), note)
    return slices, skipped


def _name_volumes(paths: list[str]) -> list[str | tuple[str, str]]:
    """The paths, each NIfTI image as a pair with a name of its own, which is that of the patient.

    That is the file's, with as many folders before it as tell it from the others, and without its
    ending unless two files differ in that alone.
    """
    short = {path: _ENDING.sub("", path) for path in filter(_ENDING.search, paths)}
    alike = Counter(short.values())
    left = {path: PurePath(path if alike[name] > 1 else name).parts for path, name in short.items()}
    names: dict[str, str] = {}
    for count in itertools.count(1):
        short = {path: "-".join(parts[-count:]) for path, parts in left.items()}
        seen = Counter(short.values())
        seen.update(names.values())
        told = {path for path in left if seen[short[path]] == 1 or count >= len(left[path])}
        names |= {path: short[path] for path in told}
        left = {path: parts for path, parts in left.items() if path not in told}
        if not left:
            break
    return [(path, names[path]) if path in names else path for path in paths]


def order_slices(table: pd.DataFrame) -> pd.DataFrame:
    """Add `series`, `seq` and `position`, and sort by them: `order.order_slices`."""
    from kit.slices import order

    return order.order_slices(table)


def list_files(folder: str | Path, closed: list[OSError] | None = None) -> list[str]:
    """All files below a folder, sorted; or all members of a zip, as `archive.zip/member`.

    Raises `OSError` for a folder that cannot be listed, or adds it to `closed` if that is given.
    """
    folder = Path(folder)
    if folder.is_file() and folder.suffix.lower() == ".zip":
        return list_archive(folder)
    if folder.is_file():
        return [str(folder)]
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder or zip archive")
    return sorted(_walk(folder, closed))


def _walk(folder: Path, closed: list[OSError] | None) -> Iterator[str]:
    """Files below a folder, links followed, no real folder entered twice."""

    def take_error(error: OSError) -> None:
        if closed is None:
            raise error  # otherwise a folder that cannot be listed would be lost silently
        closed.append(error)

    seen = set()
    for directory, children, files in os.walk(folder, followlinks=True, onerror=take_error):
        real = os.path.realpath(directory)
        if real in seen:
            children.clear()
            continue
        seen.add(real)
        children.sort()
        yield from (os.path.join(directory, name) for name in files)


def _map_batches(batches: list[list], workers: int | None) -> Iterator[list[tuple]]:
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
