"""What a run fixes beforehand for its evaluation: temperatures and operating points."""

from __future__ import annotations

import numpy as np
import pandas as pd

import kit
from kit.competition import LABELS
from kit.ensemble import name_columns
from kit.evaluation.calibration import apply_temperature, fit_temperature
from kit.evaluation.inputs import IDS
from kit.evaluation.rates import choose_thresholds
from kit.files import hash_file, write_json
from kit.runs.directory import Run, RunError, read_document, require_file
from kit.runs.tables import read_predicted


def calibrate_run(run: Run) -> dict:
    """Fit temperatures and choose operating points on the out-of-fold predictions of a run.

    Both are made for each label and for each unit (slice, series, study, patient; a unit's
    probability is the maximum over its slices), and written to `calibration.json`. A temperature is
    None where none could be fitted. Raises `RunError` where nothing was held out.
    """
    if run.metrics.exists() and not run.oof.exists():
        raise RunError(f"{run}: it held nothing out, so there is nothing to calibrate on")
    require_file(run.oof, f"kit ensemble {run}")
    table = read_predicted(run.oof)
    units = {unit: _calibrate_unit(table, key) for unit, key in IDS.items()}
    document = {"kit": kit.__version__, "oof_sha256": hash_file(run.oof), "units": units}
    write_json(run.calibration, document)
    return document


def read_calibration(run: Run, unit: str) -> dict:
    """Read what `calibrate_run` wrote for a unit: `temperatures` and `points`, by label.

    Raises `RunError` where it is missing or was made of other predictions than the run now holds.
    """
    require_file(run.calibration, f"kit calibrate {run}")
    document = read_document(run.calibration, {"units": dict})
    if run.oof.exists() and document.get("oof_sha256") != hash_file(run.oof):
        raise RunError(
            f"{run.calibration} was made of other predictions than {run.oof} now holds: run "
            f"`kit calibrate {run}` again"
        )
    try:
        found = document["units"][unit]
        return {
            "temperatures": {
                label: None if (t := found["temperatures"][label]) is None else float(t)
                for label in LABELS
            },
            "points": {
                point: {label: float(value) for label, value in values.items()}
                for point, values in found["points"].items()
            },
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{run.calibration}: not what kit calibrate writes ({error})") from error


def apply_calibration(table: pd.DataFrame, run: Run, unit: str, suffix: str = "") -> pd.DataFrame:
    """Return a table whose columns `{label}{suffix}` are calibrated by the run's temperatures."""
    temperatures = read_calibration(run, unit)["temperatures"]
    columns = [f"{label}{suffix}" for label in LABELS]
    values = [
        apply_temperature(table[column].to_numpy(), temperatures[label])
        for label, column in zip(LABELS, columns, strict=True)
    ]
    return table.assign(**dict(zip(columns, values, strict=True)))


def _calibrate_unit(table: pd.DataFrame, key: str) -> dict:
    """Fit and choose by label on the maxima over the rows of one `key`."""
    units = table.groupby(key, sort=False)[[*LABELS, *name_columns("bag")]].max()
    temperatures: dict[str, float | None] = {}
    points: dict[str, dict[str, float]] = {}
    for label, column in zip(LABELS, name_columns("bag"), strict=True):
        labels, probabilities = units[label].to_numpy(), units[column].to_numpy(np.float64)
        temperatures[label] = fit_temperature(labels, probabilities)
        for point, threshold in choose_thresholds(labels, probabilities).items():
            points.setdefault(point, {})[label] = threshold
    return {
        "n": len(units),
        "positives": units[list(LABELS)].sum().astype(int).to_dict(),
        "temperatures": temperatures,
        "points": points,
    }
