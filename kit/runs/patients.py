"""Which patients a run was trained on, kept as hashes: so that an evaluation can tell."""

from __future__ import annotations

import pandas as pd

from kit.evaluation.leakage import hash_patient
from kit.files import write_json
from kit.runs.directory import (
    Run,
    RunError,
    is_imported,
    list_folds,
    read_config,
    read_document,
    read_recipe,
)
from kit.runs.tables import read_slices


def write_patients(run: Run, slices: pd.DataFrame) -> None:
    """Write the hashed PatientIDs of the training part of a slice table to `patients.json`."""
    write_json(run.patients, {"sha256": sorted(_hash_training(slices))})


def read_patients(run: Run) -> frozenset[str] | None:
    """Read the hashed PatientIDs that a run, or an export of one, was trained on.

    A run of version 0.1.0 tells them by its slice table. None where the run does not say.
    """
    if run.patients.exists():
        hashes = read_document(run.patients).get("sha256")
        if not isinstance(hashes, list) or not all(isinstance(found, str) for found in hashes):
            raise RunError(f"{run.patients}: not the hashed ids of patients")
        return frozenset(hashes)
    return _hash_training(read_slices(run)) if run.slices.exists() else None


def is_from_elsewhere(run: Run) -> bool:
    """Whether a classifier or its embeddings were imported, or the run is an export of such a run.

    An import notes the files that it took; a run's own export has a provenance without them.
    """
    if "files" in read_config(run).get("provenance", {}):
        return True
    recipe = read_recipe(run)
    return any(is_imported(run, recipe, fold) for fold in list_folds(recipe))


def _hash_training(slices: pd.DataFrame) -> frozenset[str]:
    patients = slices.loc[slices["split"] == "train", "PatientID"].dropna().unique()
    return frozenset(map(hash_patient, patients))
