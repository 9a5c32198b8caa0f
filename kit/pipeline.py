"""The stages as functions: files in, files out. Each can be called again and continues.

    index → fit_classifier → embed → fit_lstm (for each fold) → score → report

`run_recipe` calls them all, and `STAGES` lists them for the command line. `kit.predict` applies a
trained run to other scans, `predict_competition` to the competition's test part.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from kit.classifier import train_classifier
from kit.competition import LABELS
from kit.processes import choose_workers
from kit.recipes import Recipe
from kit.report.run_page import write_report
from kit.runs import status
from kit.runs.directory import (
    ALL_DATA,
    Run,
    begin_run,
    is_imported,
    list_classifier_epochs,
    list_folds,
    list_kept_epochs,
    lock_run,
    read_recipe,
)
from kit.runs.joint import begin_joint, fit_joint
from kit.runs.lstms import (
    derive_seed,
    fit_lstms,
    is_held_out,
    is_training,
    remove_needless,
)
from kit.runs.moved import follow_data, note_files
from kit.runs.patients import write_patients
from kit.runs.provenance import adopt_classifier, is_adopted, is_synthetic, refuse_joint
from kit.runs.scoring import combine
from kit.runs.stores import embed, is_embedded
from kit.runs.tables import read_slices, write_frame
from kit.runs.timings import time_stage
from kit.slices.competition_files import index_competition
from kit.slices.folds import assign_folds, check_training
from kit.training.config import JointConfig
from kit.training.distributed import choose_device, rank, wait_for_all, world_size


def run_recipe(
    data: Path,
    recipe: Recipe,
    run: Run,
    *,
    workers: int | None = None,
    fold_table: Path | None = None,
    deadline: float | None = None,
) -> pd.DataFrame:
    """Run all stages, from the competition's data to `submission.csv` and `report.html`.

    Continues where an earlier call stopped. Returns the out-of-fold scores, as `score` does. Raises
    `RunError` if the run was begun with another recipe or on other data.
    """
    index(data, recipe, run, workers=workers, fold_table=fold_table)
    recipe = read_recipe(run)
    folds, many = list_folds(recipe), world_size()
    stay = list_kept_epochs(recipe)[0]
    go = [epoch for epoch in list_classifier_epochs(recipe) if epoch not in stay]
    for fold in folds:
        fit_classifier(run, fold, workers=workers, deadline=deadline)
        # Embeddings that go with their LSTM make room for the next; the others can wait for it.
        for epochs in (go[start : start + many] for start in range(0, len(go), many)):
            embed(run, fold, epochs, workers=workers, deadline=deadline)
            fit_lstms(run, [fold], epochs, deadline)
        embed(run, fold, workers=workers, deadline=deadline)
    fit_lstms(run, folds, deadline=deadline)
    scores = score(run)
    report(run)
    return scores


def index(
    data: Path,
    recipe: Recipe,
    run: Run,
    *,
    workers: int | None = None,
    fold_table: Path | None = None,
) -> pd.DataFrame:
    """Begin a run: `config.json`, the slice table with labels and folds, `skipped.csv`.

    One that has begun goes on with its data in another place, if names and sizes are the same.
    """
    data, recipe = Path(data).absolute(), _locate_weights(adopt_classifier(recipe, run), run)
    if rank() == 0:
        follow_data(run, data)
    wait_for_all()
    begin_run(run, recipe, data, fold_table, is_synthetic(data))
    if rank() == 0 and not run.slices.exists():
        with time_stage(run, "index", run.slices):
            slices, skipped = index_competition(data, workers)
            write_frame(run.skipped, skipped)
            # No split is needed where no fold is held out.
            folds = recipe.folds if recipe.train_folds or fold_table else 1
            slices["fold"] = assign_folds(slices, folds, recipe.seed, fold_table)
            check_training(data, slices, skipped, list_folds(recipe))
            write_patients(run, slices)
            note_files(run, slices)
            write_frame(run.slices, slices)
    wait_for_all()
    return read_slices(run)


def _locate_weights(recipe: Recipe, run: Run) -> Recipe:
    """The recipe with the absolute path of its initial weights, which must exist at the start."""
    weights = recipe.classifier.weights
    if weights in ("", "pretrained"):
        return recipe
    path = Path(weights).absolute()
    if not path.is_file() and not run.slices.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no such file of weights", str(path))
    return replace(recipe, classifier=replace(recipe.classifier, weights=str(path)))


def fit_classifier(
    run: Run, fold: int | str, *, workers: int | None = None, deadline: float | None = None
) -> pd.DataFrame:
    """Train the classifier of a fold on the training slices outside it.

    Returns the history, one row per epoch; it is empty if the embeddings were imported.
    """
    recipe, slices = read_recipe(run), read_slices(run)
    directory = run.classifier(fold)
    config = replace(recipe.classifier, seed=derive_seed(recipe, fold, 0))
    imported = is_imported(run, recipe, fold) or is_adopted(run)
    if not imported and not status.is_trained(directory, config.epochs):
        refuse_joint(run, fold)
        with time_stage(run, f"fold{fold} classifier", directory):
            train_classifier(
                slices[is_training(slices, fold)],
                config,
                directory,
                choose_device(),
                choose_workers(workers),
                slices[is_held_out(slices, fold)],
                f"Fold {fold} classifier",
                deadline,
            )
    wait_for_all()
    if not imported:
        left = [n for n in list_classifier_epochs(recipe) if not is_embedded(run, fold, n)]
        remove_needless(run, directory, [*list_kept_epochs(recipe)[0], *left])
    return status.read_history(directory)


def fit_lstm(run: Run, fold: int | str, *, deadline: float | None = None) -> pd.DataFrame:
    """Train the LSTM of a fold on each of its embeddings, as `fit_lstms` does."""
    return fit_lstms(run, [fold], deadline=deadline)


def train_joint(
    run: Run,
    out: Run,
    config: JointConfig,
    folds: Sequence[int | str] | None = None,
    *,
    workers: int | None = None,
    deadline: float | None = None,
) -> pd.DataFrame:
    """Train the models of `run` on as one network, into the run `out`; embed, predict and score.

    Only the `folds` named, by default all; `out` is scored once all have predicted, else no row is
    returned. Continues where an earlier call stopped. Raises `RunError` if `run` lacks weights or
    `out` was begun otherwise.
    """
    every = list_folds(read_recipe(run))
    begin_joint(run, out, config, folds or every)
    for fold in folds or every:
        fit_joint(run, out, fold, workers=workers, deadline=deadline)
        embed(out, fold, workers=workers, deadline=deadline)
    fit_lstms(out, folds or every, deadline=deadline)
    if not all(out.predictions(fold, config.epochs, config.epochs).exists() for fold in every):
        return pd.DataFrame()
    with lock_run(out):
        scores = score(out)
        report(out)
    return scores


def score(run: Run) -> pd.DataFrame:
    """Average and score the predictions; return the out-of-fold log loss per model and fold.

    Columns are `model`, `fold` ("all" or a number), the labels and `weighted`. There is no row if
    nothing was held out.
    """
    scores = combine(run)["scores"]
    rows = [
        {"model": model, "fold": fold, **losses}
        for model, folds in scores.items()
        for fold, losses in folds.items()
    ]
    return pd.DataFrame(rows, columns=["model", "fold", *LABELS, "weighted"])


def report(run: Run, series: tuple[str, ...] = (), others: tuple[Run, ...] = ()) -> None:
    """Write `report.html`, the page that shows the run, with at least the `series` named.

    The scores of `others` stand beside its own.
    """
    if rank() == 0:
        with time_stage(run, "report", run.report):
            write_report(run, series, others)
    wait_for_all()


@dataclass(frozen=True)
class Stage:
    """What runs a stage, and what lists its outputs by (run, recipe, fold).

    A stage that works fold by fold writes into `folder` below the folder of the fold.
    """

    execute: Callable[..., Any]
    list_outputs: Callable[[Run, Recipe, int | str], list[status.Output]]
    folder: str = ""


# By the names of their commands.
STAGES = {
    "index": Stage(index, status.list_index),
    "train-classifier": Stage(fit_classifier, status.list_classifier, "classifier"),
    "embed": Stage(embed, status.list_embeddings, "embeddings"),
    "train-lstm": Stage(fit_lstm, status.list_lstms, "lstm"),
    "ensemble": Stage(score, status.list_results),
    "report": Stage(report, status.list_report),
}


def list_stages(run: Run) -> list[tuple[str, str]]:
    """Everything that the stages write, with its state: `done`, `3 of 5 epochs`, `begun`, `to do`.

    Raises `RunError` where there is no run.
    """
    recipe = read_recipe(run)
    order: list[tuple[str, int | str]] = [("index", ALL_DATA)]
    for fold in list_folds(recipe):
        order += [(name, fold) for name, stage in STAGES.items() if stage.folder]
    order += [("ensemble", ALL_DATA), ("report", ALL_DATA)]
    outputs = [o for name, fold in order for o in STAGES[name].list_outputs(run, recipe, fold)]
    return [(output.name, status.describe_output(output)) for output in outputs]
