"""What accompanies predictions of scans: a summary of each series, and a manifest."""

from __future__ import annotations

import platform
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import kit
from kit import InputError
from kit.competition import LABELS
from kit.ensemble import name_columns
from kit.files import hash_file, write_json
from kit.processes import count_cores
from kit.runs.calibration import apply_calibration
from kit.runs.directory import Run
from kit.runs.provenance import read_provenance

# What the page of the scans needs of a slice, and the written table does not have.
VIEW_COLUMNS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")

_NO_CODE = "reason listed in skipped.csv"  # in tables that an older version wrote


def summarize_series(
    table: pd.DataFrame, threshold: float = 0.5, pooled: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Summarize each series in one row, in the table's order, from one row per slice.

    `table` is that of `prediction.Predictions`, `pooled` its `series`. A row has the series'
    identity, `slices`, and for each label `{label}`, its probability (the model's own or else the
    maximum), `{label}_maximum`, `{label}_slices` (how many reach `threshold`) and
    `{label}_extent_mm`, the length of these along the slice normal: a slice extends half way to
    each neighbor, but at most half the series' median step, so that gaps do not count. A single
    slice has no extent (NaN), nor has a series that was ordered by InstanceNumber
    (`ImagePositionPatient` is missing).
    """
    keys = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID"]
    rows = []
    for name, series in table.groupby("series", sort=False):
        thickness = measure_thickness(series["position"].to_numpy(np.float64))
        if "ImagePositionPatient" in series and series["ImagePositionPatient"].isna().any():
            thickness[:] = np.nan
        row = {**series.iloc[0][keys].to_dict(), "slices": len(series)}
        for label in LABELS:
            above = series[label].to_numpy() >= threshold
            row[label] = series[label].max() if pooled is None else pooled.loc[name, label]
            row[f"{label}_maximum"] = series[label].max()
            row[f"{label}_slices"] = int(above.sum())
            row[f"{label}_extent_mm"] = (thickness * above).sum()
        rows.append(row)
    return pd.DataFrame(rows)


def tabulate(
    table: pd.DataFrame,
    by: str = "slice",
    threshold: float = 0.5,
    pooled: pd.DataFrame | None = None,
    calibrated: Run | None = None,
) -> pd.DataFrame:
    """Arrange the table of `prediction.Predictions` as it is written: a row a slice or a series.

    Arguments as in `summarize_series`. `calibrated` is the run whose temperatures for that unit are
    applied to the six probabilities; a column `calibrated` then says so. `threshold` counts slices
    as they are written by slice. Raises `InputError` for series that a model pools by itself:
    temperatures are fitted to the maxima over slices.
    """
    slices = table
    if calibrated is not None:
        slices = apply_calibration(table, calibrated, "slice").assign(calibrated=True)
    if by == "slice":
        return slices.drop(columns=["series", *VIEW_COLUMNS, "source"], errors="ignore")
    if calibrated is not None:
        refuse_pooled(pooled)
    summary = summarize_series(slices, threshold, pooled)
    names = [*LABELS, *name_columns("classifier")]
    maxima = table.groupby("series", sort=False)[names].max()
    summary = summary.assign(**{f"{name}_maximum": maxima[name].to_numpy() for name in maxima})
    if calibrated is None:
        return summary
    summary = summary.assign(**{label: maxima[label].to_numpy() for label in LABELS})
    summary = apply_calibration(summary, calibrated, "series")
    return apply_calibration(summary, calibrated, "series", "_maximum").assign(calibrated=True)


def refuse_pooled(pooled: pd.DataFrame | None) -> None:
    """Raise `InputError` for a model that pools series: there is no temperature for its own."""
    if pooled is not None:
        raise InputError(
            "this model gives a series a probability of its own, to which no temperature was "
            "fitted: leave out --calibrated, or predict by slice"
        )


def measure_thickness(positions: np.ndarray) -> np.ndarray:
    """Measure how far each slice of an ordered series extends, (T,) mm; NaN for a single slice."""
    steps = np.diff(positions)
    if not len(steps):
        return np.full(len(positions), np.nan)
    median = np.median(steps[steps > 0]) if (steps > 0).any() else 0.0
    # The first and the last slice extend outwards by half a median step.
    halves = np.concatenate([[median], np.minimum(steps, median), [median]]) / 2
    return halves[:-1] + halves[1:]


def write_manifest(
    path: Path,
    run: Run,
    members: dict[Path, list[Path]],
    table: pd.DataFrame,
    skipped: pd.DataFrame,
    seconds: float,
    calibrated: bool = False,
) -> dict:
    """Write what the predictions came from, as JSON: versions, weights' hashes, what was skipped.

    `members` as of `prediction.list_members`. Holds no patient's name, no path of a scan, no date.
    """
    weights = [path for classifier, lstms in members.items() for path in (classifier, *lstms)]
    manifest = {
        "not_a_medical_device": True,
        "versions": list_versions(),
        "run": run.path.absolute().name,
        "provenance": read_provenance(run),
        "weights_sha256": {str(file.relative_to(run.path)): hash_file(file) for file in weights},
        "calibrated": calibrated,
        "slices": len(table),
        "series": int(table["series"].nunique()),
        "skipped": count_reasons(skipped),
        "seconds": round(seconds, 1),
    }
    write_json(path, manifest)
    return manifest


def count_reasons(skipped: pd.DataFrame) -> dict[str, int]:
    """How many files were skipped for each reason, the most frequent first.

    Counts the reasons' codes, which quote nothing: a reason's detail may hold a patient's name.
    """
    codes = skipped["code"] if "code" in skipped else pd.Series(None, skipped.index, dtype=object)
    counts = codes.fillna(_NO_CODE).value_counts()
    return {code: int(count) for code, count in counts.items()}


def list_versions() -> dict[str, str]:
    """Versions of what computes: kit, Python and the libraries that read and predict."""
    return {
        "kit": kit.__version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),
        "pydicom": version("pydicom"),
        "NumPy": np.__version__,
    }


def describe_machine() -> dict[str, str]:
    """The processor, and the GPUs where there are any."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    processor = f"{_name_processor()}, {count_cores()} cores"
    return {"processor": processor, **({"GPU": ", ".join(gpus)} if gpus else {})}


def _name_processor() -> str:
    """The processor's model; Linux tells it in a file alone."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()
