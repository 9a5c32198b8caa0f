"""Scans in any form, a folder, files or an array in memory → the slices to predict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from kit import InputError
from kit.dicom.checks import check_volume
from kit.dicom.nifti import narrow_values
from kit.processes import restart_once
from kit.progress import format_count
from kit.runs.work import leave_own
from kit.slices.entries import DESCRIPTION_COLUMNS
from kit.slices.index import index_files, list_files
from kit.slices.order import number_series
from kit.slices.series import describe_series

# A folder, a zip or a file, or several.
Scans = str | Path | Sequence[str | Path]


class Gathered(NamedTuple):
    """The slice table, what is known of all series (`describe_series`), and the skipped files.

    The slices of an array have `source`, their values, and no `path`.
    """

    slices: pd.DataFrame
    described: pd.DataFrame
    skipped: pd.DataFrame
    started: float  # by `time.monotonic`


def gather_files(
    scans: Scans,
    out: Path | None = None,
    pseudonymize: bool = False,
    workers: int | None = None,
    skip_unreadable: bool = False,
) -> Gathered:
    """Index folders, zips and files, but for what an earlier call for `out` left among them.

    Raises as `index_slices` does, and `InputError` where there is no usable slice.
    """
    started = time.monotonic()
    places = [Path(scans)] if isinstance(scans, str | Path) else [Path(one) for one in scans]
    closed: list[OSError] | None = [] if skip_unreadable else None
    paths = []
    for place in places:
        found = list_files(place, closed)
        paths += found if out is None else leave_own(found, place, out)
    source = str(places[0]) if len(places) == 1 else f"the {len(places)} scans"
    slices, skipped = restart_once(index_files)(
        list(dict.fromkeys(paths)), source, workers, closed=closed
    )
    refuse_empty(Path(source), slices, skipped)
    if pseudonymize:
        slices, skipped = _pseudonymize(slices, skipped)
    return Gathered(slices, describe_series(slices, skipped), skipped, started)


def gather_array(hounsfield: np.ndarray, positions: Sequence[float] | None = None) -> Gathered:
    """Take an array in HU, (slices, rows, columns), as one series, from feet to head.

    `positions` (slices,) are mm along the normal, rising towards the head, by which the slices are
    ordered; without them they go as they are, and nothing is known of their spacing. A slice's
    SOPInstanceUID is its number in the array. Raises `InputError` for what is not that.
    """
    started, volume = time.monotonic(), np.asarray(hounsfield)
    if volume.ndim != 3 or volume.dtype.kind not in "iuf" or not volume.size:
        what = f"{volume.dtype} {volume.shape}"
        raise InputError(f"an array of {what} is not slices × rows × columns")
    reason = check_volume(volume)
    if reason:
        raise InputError(f"the array: {reason}")
    places = np.arange(len(volume)) if positions is None else np.asarray(positions, np.float64)
    if places.shape != (len(volume),) or not np.isfinite(places).all():
        raise InputError(f"{len(volume)} slices need as many positions, in mm")
    if len(np.unique(places)) < len(places):
        raise InputError("the positions do not tell the slices apart: some are the same")
    order = np.argsort(places, kind="stable")
    uid = "array"
    slices = pd.DataFrame(
        {
            "path": "",
            "source": [narrow_values(volume[number]) for number in order],
            **dict.fromkeys(("PatientID", "StudyInstanceUID", "SeriesInstanceUID"), uid),
            "SOPInstanceUID": [str(number) for number in order],
            **dict.fromkeys(DESCRIPTION_COLUMNS),
            "SliceThickness": None,
            "ImagePositionPatient": None if positions is None else "",
            "InstanceNumber": order + 1,
            "series": f"{uid}/{uid}/{uid}",
            "seq": np.arange(len(volume)) + 1,
            "position": places[order].astype(np.float64),
            "repaired": False,
            "note": None,
        }
    )
    skipped = pd.DataFrame(columns=[*slices, "reason", "code"])
    return Gathered(slices, describe_series(slices, skipped), skipped, started)


def refuse_empty(source: Path, slices: pd.DataFrame, skipped: pd.DataFrame) -> None:
    if slices.empty:
        reasons = skipped["code"].value_counts()
        raise InputError(
            f"{source}: no usable CT slice among {format_count(len(skipped), 'file')}; most often: "
            f"{reasons.index[0]} ({reasons.iloc[0]})"
        )


def _pseudonymize(slices: pd.DataFrame, skipped: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables with running numbers for PatientIDs, and without what somebody typed."""
    patients = pd.concat([slices["PatientID"], skipped["PatientID"]], ignore_index=True)
    numbered = pd.Series([f"patient{n + 1}" for n in pd.factorize(patients)[0]], dtype=object)
    parts = []
    for table, own in ((slices, numbered[: len(slices)]), (skipped, numbered[len(slices) :])):
        typed = dict.fromkeys(("StudyDescription", "SeriesDescription"))
        table = table.assign(PatientID=own.to_numpy(), **typed)
        numbers, names = number_series(table)
        renamed = pd.Series(names[numbers].to_numpy(object), table.index, dtype=object)
        parts.append(table.assign(series=renamed.where(table["series"].notna(), None)))
    return parts[0], parts[1]


def make_ids_unique(slices: pd.DataFrame) -> pd.Series:
    """Have slices of one SOPInstanceUID bear their series too; return what they were called.

    Anonymizers restart the UIDs with each patient, and embeddings and predictions go by them.
    """
    names = slices["SOPInstanceUID"].copy()
    again = names.duplicated(keep=False)
    slices.loc[again, "SOPInstanceUID"] = slices["series"][again] + "/" + names[again]
    return names
