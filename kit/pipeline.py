"""The stages as functions: files in, files out. Each can be called again and continues.

    index → fit_classifier → embed → fit_lstm (for each fold) → score → report

`run_recipe` calls them all, and `STAGES` lists them for the command line. `kit.predict` applies a
trained run to other scans, `predict_competition` to the competition's test part.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.classifier import train_classifier
from kit.competition import LABELS
from kit.embeddings import EmbeddingStore, extract_embeddings, make_series
from kit.files import write_json
from kit.lstm import train_lstm
from kit.processes import choose_workers
from kit.recipes import Recipe
from kit.report.run_page import write_report
from kit.runs import status
from kit.runs.directory import (
    ALL_DATA,
    Run,
    RunError,
    begin_run,
    list_classifier_epochs,
    list_folds,
    list_lstm_epochs,
    read_document,
    read_recipe,
    require_file,
)
from kit.runs.members import predict_by_lstms
from kit.runs.prediction import note_unreadable
from kit.runs.provenance import adopt_classifier, is_adopted, is_synthetic
from kit.runs.scoring import combine
from kit.runs.tables import read_slices, write_frame
from kit.runs.timings import time_stage
from kit.slices.competition_files import index_competition
from kit.slices.folds import assign_folds, check_training
from kit.training.distributed import choose_device, rank, wait_for_all


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
    for fold in list_folds(read_recipe(run)):
        fit_classifier(run, fold, workers=workers, deadline=deadline)
        embed(run, fold, workers=workers, deadline=deadline)
        fit_lstm(run, fold, deadline=deadline)
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
    """Begin a run: `config.json`, the slice table with labels and folds, `skipped.csv`."""
    data = Path(data).absolute()
    recipe = _locate_weights(adopt_classifier(recipe, run), run)
    begin_run(run, recipe, data, fold_table, is_synthetic(data))
    if rank() == 0 and not run.slices.exists():
        with time_stage(run, "index", run.slices):
            slices, skipped = index_competition(data, workers)
            write_frame(run.skipped, skipped)
            # No split is needed where no fold is held out.
            folds = recipe.folds if recipe.train_folds or fold_table else 1
            slices["fold"] = assign_folds(slices, folds, recipe.seed, fold_table)
            check_training(data, slices, skipped, list_folds(recipe))
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
    config = replace(recipe.classifier, seed=_derive_seed(recipe, fold, 0))
    imported = status.is_imported(run, recipe, fold) or is_adopted(run)
    if not imported and not status.is_trained(directory, config.epochs):
        with time_stage(run, f"fold{fold} classifier", directory):
            train_classifier(
                slices[_is_training(slices, fold)],
                config,
                directory,
                choose_device(),
                choose_workers(workers),
                slices[_is_held_out(slices, fold)],
                f"Fold {fold} classifier",
                deadline,
            )
    wait_for_all()
    return status.read_history(directory)


def embed(
    run: Run, fold: int | str, *, workers: int | None = None, deadline: float | None = None
) -> pd.DataFrame:
    """Embed every slice with each of the last classifier epochs of a fold.

    Returns one row per store, as `list_stores` does.
    """
    recipe, slices = read_recipe(run), read_slices(run)
    epochs = [] if status.is_imported(run, recipe, fold) else list_classifier_epochs(recipe)
    for epoch in epochs:
        weights = run.classifier(fold) / f"epoch{epoch}.safetensors"
        require_file(weights, f"kit train-classifier {run} --fold {fold}")
        with time_stage(run, f"fold{fold} embeddings", run.store(fold, epoch)):
            store = extract_embeddings(
                slices,
                weights,
                run.store(fold, epoch),
                choose_device(),
                choose_workers(workers),
                description=f"Fold {fold} embeddings {epoch}",
                deadline=deadline,
            )
        if rank() == 0:
            note_unreadable(run.skipped, slices, store)
    wait_for_all()
    return status.list_stores(run, fold)


def fit_lstm(run: Run, fold: int | str, *, deadline: float | None = None) -> pd.DataFrame:
    """Train the LSTM of a fold on each of its embeddings, and predict held-out and test slices.

    Returns the histories, one row per epoch; `classifier_epoch` names the embeddings.
    """
    recipe, slices, histories = read_recipe(run), read_slices(run), []
    for number, epoch in enumerate(list_classifier_epochs(recipe), start=1):
        require_file(run.store(fold, epoch) / "store.json", f"kit embed {run} --fold {fold}")
        store, directory = EmbeddingStore(run.store(fold, epoch)), run.lstm(fold, epoch)
        config = replace(
            recipe.lstm,
            seed=_derive_seed(recipe, fold, number),
            embedding_size=store.embeddings.shape[1],
        )
        _check_source(directory, store)
        if not status.is_trained(directory, config.epochs):
            with time_stage(run, f"fold{fold} LSTM", directory):
                # The bag must not average what an earlier training predicted.
                for stale in directory.glob("predictions*.parquet") if rank() == 0 else ():
                    stale.unlink()
                train_lstm(
                    make_series(store, slices[_is_training(slices, fold)]),
                    config,
                    directory,
                    choose_device(),
                    make_series(store, slices[_is_held_out(slices, fold)]),
                    f"Fold {fold} LSTM on {epoch}",
                    deadline,
                )
        if rank() == 0:
            _predict_with_epochs(run, fold, epoch, store, slices[~_is_training(slices, fold)])
        histories.append(status.read_history(directory).assign(classifier_epoch=epoch))
    wait_for_all()
    return pd.concat(histories, ignore_index=True)


def _predict_with_epochs(
    run: Run, fold: int | str, epoch: int, store: EmbeddingStore, slices: pd.DataFrame
) -> None:
    """Write the probabilities of `slices` by each of the last LSTM epochs."""
    numbers = list_lstm_epochs(read_recipe(run))
    left = [n for n in numbers if not run.predictions(fold, epoch, n).exists()]
    weights = [run.lstm(fold, epoch) / f"epoch{n}.safetensors" for n in left]
    for n, (found, _) in zip(left, predict_by_lstms(store, slices, weights), strict=True):
        write_frame(run.predictions(fold, epoch, n), found.reset_index())


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


def report(run: Run, series: tuple[str, ...] = ()) -> None:
    """Write `report.html`, the page that shows the run, with at least the `series` named."""
    if rank() == 0:
        with time_stage(run, "report", run.report):
            write_report(run, series)
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


def _is_training(slices: pd.DataFrame, fold: int | str) -> pd.Series:
    labeled = slices["split"] == "train"
    return labeled if fold == ALL_DATA else labeled & (slices["fold"] != fold)


def _is_held_out(slices: pd.DataFrame, fold: int | str) -> pd.Series:
    return (slices["split"] == "train") & ~_is_training(slices, fold)


def _derive_seed(recipe: Recipe, fold: int | str, part: int) -> int:
    number = recipe.folds if fold == ALL_DATA else int(fold)
    return int(np.random.SeedSequence([recipe.seed, number, part]).generate_state(1)[0] >> 1)


def _check_source(directory: Path, store: EmbeddingStore) -> None:
    """Note beside an LSTM which embeddings it is trained on; refuse others later."""
    source, path = store.provenance["weights_sha256"], directory / "source.json"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        if rank() == 0:
            write_json(path, {"embeddings_from": source})
    elif read_document(path).get("embeddings_from") != source:
        raise RunError(
            f"{directory} was trained on other embeddings than {store.directory} now holds: "
            "remove it to train again"
        )
