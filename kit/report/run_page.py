"""The page that shows a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kit import InputError
from kit.competition import LABELS
from kit.ensemble import MODELS, name_columns
from kit.evaluation.curves import trace_curves
from kit.evaluation.intervals import slice_losses
from kit.files import read_commit
from kit.progress import format_count
from kit.recipes import Recipe
from kit.report.comparison import compare_runs, score_triples
from kit.report.page import describe_model, write_page
from kit.report.series import choose_series, describe_viewer, present_series
from kit.runs.directory import (
    Run,
    list_classifier_epochs,
    list_folds,
    read_config,
    read_recipe,
    require_file,
)
from kit.runs.joint import describe_joint
from kit.runs.metrics import describe_setback
from kit.runs.scans import count_reasons, describe_machine, list_versions
from kit.runs.status import read_epochs
from kit.runs.tables import read_predicted, read_skipped, read_slices
from kit.runs.timings import read_timings


def write_report(run: Run, series: tuple[str, ...] = (), others: tuple[Run, ...] = ()) -> Path:
    """Write `report.html` of a run and return its path.

    It shows the series with the highest loss, a sample of the others, and those named in `series`
    first. If no slice was held out (recipe `single`), it shows the test part, without truth or
    scores. The scores stand beside those of `others`, as `compare_runs` finds them.
    """
    recipe = read_recipe(run)
    table = _read_predictions(run)
    held_out = run.oof.exists()
    named = list(dict.fromkeys(find_series(table, name) for name in series))
    ranked, rates = choose_series(table, held_out, recipe.classifier)
    chosen = list(dict.fromkeys([*named, *ranked]))
    shown, images = present_series(table, chosen, recipe.classifier)
    data = {
        **_describe_run(run, recipe),
        **(describe_scores(table, read_slices(run)) if held_out else {}),
        "comparisons": [compare_runs(run, other) for other in others],
        "histories": _read_histories(run, recipe),
        **describe_viewer(recipe.classifier),
        "series": shown,
        "named": bool(named),
        "others": rates.index.difference(chosen, sort=False).tolist(),
    }
    return write_page(run.report, data, images)


def _read_predictions(run: Run) -> pd.DataFrame:
    """The held-out slices, or else the test part, with the probabilities of all models."""
    if run.oof.exists():
        return read_predicted(run.oof)
    require_file(run.test, f"kit ensemble {run}")
    return read_predicted(run.test)


def read_series(run: Run, name: str) -> pd.DataFrame:
    """The slices of a held-out or test series, in order, with the probabilities of all models.

    `find_series` explains `name`.
    """
    require_file(run.test, f"kit ensemble {run}")
    tables = [read_predicted(path) for path in (run.oof, run.test) if path.exists()]
    found = find_series(pd.concat([table[["series"]] for table in tables]), name)
    parts = [table[table["series"] == found] for table in tables]
    return next(part for part in parts if len(part))


def find_series(table: pd.DataFrame, name: str) -> str:
    """The series called `name`, or else the only one whose name contains it.

    Raises `InputError` if several names contain it, or none.
    """
    names = table["series"].unique()
    if name in names:
        return name
    found = [other for other in names if name in other]
    if len(found) != 1:
        number = len(found) or "none"
        raise InputError(f"{number} of the {len(names)} series have {name!r} in their name")
    return found[0]


def _describe_run(run: Run, recipe: Recipe) -> dict:
    """What was run, on which data, at what cost, and what wrote the report."""
    skipped, commit = read_skipped(run.skipped), find_commit()
    versions = list_versions()
    return {
        "title": f"Run of recipe {recipe.name}",
        **describe_model(run),
        "facts": _list_facts(run, recipe, len(skipped)),
        "written": [
            ["kit", versions.pop("kit") + (f", commit {commit}" if commit else "")],
            *versions.items(),
            *describe_machine().items(),
        ],
        "stages": read_timings(run),
        "skipped": count_reasons(skipped),
    }


def _list_facts(run: Run, recipe: Recipe, skipped: int) -> list[list[str]]:
    config, classifier, lstm = read_config(run), recipe.classifier, recipe.lstm
    architecture = f"{classifier.architecture}, {classifier.image_size} pixels"
    averaged = f"the last {recipe.bag_lstm_epochs} averaged"
    averaged = f"the weights of {averaged}" if recipe.average_weights else averaged
    return [
        ["recipe", recipe.name],
        ["data", Path(config["data"]).name],
        *_count_parts(read_slices(run), classifier.repair),
        ["files skipped", str(skipped)],
        ["folds trained", ", ".join(map(str, list_folds(recipe)))],
        ["classifier", f"{architecture}, {format_count(classifier.epochs, 'epoch')}"],
        ["LSTM", f"{lstm.hidden_size} units, {format_count(lstm.epochs, 'epoch')}, {averaged}"],
        *([["joint training", describe_joint(run)]] if "joint" in config else []),
        ["started with", f"kit {config['kit']}"],
    ]


def _count_parts(slices: pd.DataFrame, repair: bool) -> list[list[str]]:
    """The size of the training and the test part, and how many files had a wrong intercept."""
    facts = []
    for split, part in slices.groupby("split", sort=False):
        series, patients = part["series"].nunique(), part["PatientID"].nunique()
        slices_of = f"{format_count(len(part), 'slice')} of {format_count(patients, 'patient')}"
        name = "training" if split == "train" else split
        facts.append([f"{name} part", f"{slices_of} in {series} series"])
    wrong = int(slices["repaired"].sum())
    done = "corrected" if repair else "not corrected"
    text = f"in {format_count(wrong, 'file')}, {done}" if wrong else "in no file"
    return [*facts, ["wrong rescale intercept", text]]


def find_commit() -> str | None:
    """The commit of the checkout that `kit` is imported from, or None outside a checkout."""
    root = Path(__file__).parents[2]
    commit = read_commit(root) if (root / ".git").exists() else None
    return commit and commit[:12]


def describe_scores(table: pd.DataFrame, slices: pd.DataFrame) -> dict:
    """Each model's log loss with its interval, per fold and overall; its curves; the bag's gain.

    `prior` is the share of each label in the slices that a fold's models were trained on.
    """
    labels = table[list(LABELS)].to_numpy()
    folds, patients = table["fold"].to_numpy(), table["PatientID"].to_numpy()
    parts = {"all": np.ones(len(table), bool), **{str(k): folds == k for k in np.unique(folds)}}
    # Imported embeddings come without their classifier's predictions.
    models = [model for model in MODELS if table[name_columns(model)].notna().all(axis=None)]
    losses = {model: slice_losses(labels, table[name_columns(model)]) for model in models}
    losses["prior"] = slice_losses(labels, _find_prior(slices, folds))
    scores = {
        model: {name: score_triples(values[part], patients[part]) for name, part in parts.items()}
        for model, values in losses.items()
    }
    weighted = {model: parts["all"][-1][0] for model, parts in scores.items()}
    curves = {
        label: {
            model: trace_curves(table[label].to_numpy(), table[f"{model}_{label}"].to_numpy())
            for model in models
        }
        for label in LABELS
    }
    gain = None
    if "rolling_mean" in models:
        (gain,) = score_triples((losses["bag"] - losses["rolling_mean"])[:, -1:], patients)
    return {
        "scores": scores,
        "gain": gain,
        "setback": describe_setback(weighted.get("classifier"), weighted["bag"]),
        "slices": len(table),
        "patients": int(table["PatientID"].nunique()),
        "curves": curves,
    }


def _find_prior(slices: pd.DataFrame, folds: np.ndarray) -> np.ndarray:
    """The share of each label in the training slices outside the fold of each of N rows: (N, 6)."""
    training = slices[slices["split"] == "train"]
    shares = {
        fold: training.loc[training["fold"] != fold, list(LABELS)].mean() for fold in set(folds)
    }
    return np.array([shares[fold] for fold in folds])


def _read_histories(run: Run, recipe: Recipe) -> list[dict]:
    """The loss after each epoch of every training that recorded it: `kind`, `fold`, `loss`, …"""
    found = []
    for fold in list_folds(recipe):
        directories = [("classifier", run.classifier(fold))]
        epochs = list_classifier_epochs(recipe)
        directories += [("LSTM", run.lstm(fold, epoch)) for epoch in epochs]
        if run.joint(fold).exists():  # both have its history
            directories = [("joint model", run.joint(fold))]
        for kind, directory in directories:
            if history := read_epochs(directory):
                loss, held_out = (
                    [epoch.get(name) for epoch in history] for name in ("loss", "validation_loss")
                )
                known = {"kind": kind, "fold": str(fold)}
                found.append({**known, "loss": loss, "validation": held_out})
    return found
