"""Export trained runs for other machines: float16 weights, recipe, manifest with hashes.

The folder is a run directory for prediction: `config.json` and the weights have the places that
they have in a run. `kit-run.json` describes them and holds every file's hash.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import kit
from kit import progress, recipes
from kit.competition import LABELS, TRAINING_PRIOR
from kit.files import hash_file, read_json, write_json
from kit.runs.calibration import read_calibration
from kit.runs.directory import (
    Run,
    RunError,
    list_folds,
    list_members,
    read_document,
    read_recipe,
)
from kit.runs.metrics import read_out_of_fold
from kit.runs.patients import read_patients
from kit.runs.provenance import read_provenance
from kit.runs.tables import read_slices
from kit.training.checkpoints import load_weights, save_tensors

MANIFEST = "kit-run.json"


def export_runs(runs: list[Run], directory: Path) -> dict:
    """Write the kept weights of `runs` to `directory` and return the manifest.

    Several runs become one where they differ only in the folds they trained. Matrices and
    convolutions become float16; vectors, which take little space, and tensors whose values float16
    cannot hold stay float32. Raises `RunError` where a run is not complete or the runs do not
    belong together.
    """
    recipe = _join_recipes(runs)
    if len(runs) > 1 and any(run.shares.exists() for run in runs):
        raise RunError("a run whose LSTMs are mixed with its classifiers is exported alone")
    files = {}
    for run in runs:
        for classifier, lstms in list_members(run, read_recipe(run)).items():
            files.update({path.relative_to(run.path): path for path in (classifier, *lstms)})
    for name, path in progress.track(sorted(files.items()), "Weights", unit="files"):
        tensors, metadata = load_weights(path)
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(target, {key: _halve(value) for key, value in tensors.items()}, metadata)
    config = {"kit": kit.__version__, "recipe": recipes.to_dict(recipe)}
    provenance = {**read_provenance(runs[0]), "complete": True}
    write_json(Run(directory).config, {**config, "provenance": provenance})
    names = sorted(["config.json", *map(str, files), *_copy_records(runs, Run(directory))])
    manifest = {
        "kit": kit.__version__,
        "recipe": recipe.name,
        "folds": list_folds(recipe),
        "prior": _measure_prior(runs[0]),
        "out_of_fold": read_out_of_fold(runs[0].metrics) if len(runs) == 1 else None,
        "provenance": provenance,
        "sha256": {name: hash_file(directory / name) for name in names},
    }
    write_json(directory / MANIFEST, manifest)
    return manifest


def _copy_records(runs: list[Run], target: Run) -> list[str]:
    """Copy what else a run is asked for: training patients, one run's calibration and shares.

    Returns the names of those that an export must have: its owner may delete the patients.
    """
    known = [read_patients(run) for run in runs]
    for path in (target.patients, target.calibration, target.shares):
        path.unlink(missing_ok=True)
    if all(patients is not None for patients in known):
        write_json(target.patients, {"sha256": sorted(frozenset().union(*filter(None, known)))})
    if len(runs) == 1 and runs[0].calibration.exists():
        read_calibration(runs[0], "slice")  # one of other predictions is refused
    kept = []
    for path, copy in ((runs[0].calibration, target.calibration), (runs[0].shares, target.shares)):
        if len(runs) == 1 and path.exists():
            write_json(copy, read_document(path))
            kept.append(copy.name)
    return kept


def check_export(directory: Path) -> dict:
    """Check that the files of an export are complete and unchanged; return its manifest.

    Raises `RunError` naming the first file that is missing or damaged.
    """
    manifest = _read_manifest(directory / MANIFEST)
    hashes = manifest["sha256"].items()
    for name, digest in progress.track(hashes, "Checking weights", unit="files"):
        path = directory / name
        if not path.is_file():
            raise RunError(f"{path} is missing: export and upload the weights again")
        if hash_file(path) != digest:
            raise RunError(f"{path} is damaged: export and upload the weights again")
    list_members(Run(directory), read_recipe(Run(directory)))
    return manifest


def read_prior(run: Run) -> np.ndarray:
    """Return the share of positive training slices of a run or an export, (6,), per label."""
    path = run.path / MANIFEST
    prior = _read_manifest(path)["prior"] if path.exists() else _measure_prior(run)
    return np.array([prior[label] for label in LABELS], np.float64)


def _read_manifest(path: Path) -> dict:
    """Read a manifest. Raises `RunError` where `export_runs` did not write it."""
    try:
        manifest = read_json(path)
        possible = all(0 <= manifest["prior"][label] <= 1 for label in LABELS)
        if not possible or not isinstance(manifest["sha256"], dict):
            raise ValueError("its values are not what kit writes")
        score = manifest["out_of_fold"]
        if not (score is None or isinstance(score, float)):
            raise ValueError("its out_of_fold is no number")
        lacking = {"recipe", "folds"} - manifest.keys()
        if lacking:
            raise KeyError(*lacking)
        return manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not a manifest of weights ({error})") from error


def _join_recipes(runs: list[Run]) -> recipes.Recipe:
    """Return the recipe of the runs, with the folds of all of them."""
    found = [read_recipe(run) for run in runs]
    for run, recipe in zip(runs, found, strict=True):
        if replace(recipe, train_folds=()) != replace(found[0], train_folds=()):
            raise RunError(f"{run} was trained by another recipe than {runs[0]}")
    folds = [fold for recipe in found for fold in recipe.train_folds]
    if len(folds) != len(set(folds)) or (len(runs) > 1 and not folds):
        raise RunError(f"{', '.join(map(str, runs))} hold the same fold twice: export it once")
    return replace(found[0], train_folds=tuple(sorted(folds)))


def _halve(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    return half if torch.isfinite(half).all() else tensor


def _measure_prior(run: Run) -> dict[str, float]:
    """Measure the share of positive training slices; the organizer's without the slice table."""
    if not run.slices.exists():
        return TRAINING_PRIOR
    slices = read_slices(run)
    return slices.loc[slices["split"] == "train", list(LABELS)].mean().round(6).to_dict()
