"""Two runs side by side, on the slices that both have held out."""

from __future__ import annotations

import numpy as np

from kit import InputError
from kit.competition import LABELS
from kit.ensemble import name_columns
from kit.evaluation.intervals import bootstrap_intervals, slice_losses
from kit.runs.directory import Run, require_file
from kit.runs.tables import read_predicted


def score_triples(losses: np.ndarray, patients: np.ndarray) -> list[list[float]]:
    """(N, K) losses → K triples: the mean and both ends of its 95 % interval, over patients."""
    triples = np.column_stack([losses.mean(axis=0), bootstrap_intervals(losses, patients)])
    return np.round(triples, 6).tolist()


def compare_runs(run: Run, other: Run) -> dict:
    """Log losses of both ensembles on the slices that both held out, and the paired difference.

    Each is a list of triples, for the labels and the weighted mean, as `score_triples` returns
    them; `difference` is the other's less the run's. Raises `InputError` where a run held out
    nothing, or they have no slice in common, or not the same truth for one.
    """
    tables = []
    for each in (run, other):
        if not each.oof.exists():
            require_file(each.test, f"kit ensemble {each}")
            raise InputError(f"{each}: no slice was held out, so there is nothing to compare")
        tables.append(read_predicted(each.oof).set_index("SOPInstanceUID"))
    common = tables[0].index.intersection(tables[1].index, sort=False)
    if common.empty:
        raise InputError(f"{run} and {other} have no held-out slice in common")
    first, second = (table.loc[common] for table in tables)
    truth = first[list(LABELS)].to_numpy()
    if not np.array_equal(truth, second[list(LABELS)].to_numpy()):
        raise InputError(f"{run} and {other} were trained with different labels")
    losses = [slice_losses(truth, part[name_columns("bag")]) for part in (first, second)]
    patients = first["PatientID"].to_numpy()
    found = {"run": losses[0], "other": losses[1], "difference": losses[1] - losses[0]}
    return {
        "name": other.path.absolute().name,
        "slices": len(common),
        "patients": len(set(patients)),
        **{name: score_triples(values, patients) for name, values in found.items()},
    }
