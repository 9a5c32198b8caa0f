"""The stages as functions: files in, files out. Every one can be called again and goes on.

    index → fit_classifier → embed → fit_lstm (for each fold) → score → report

`run_recipe` calls them all; `kit.predict` applies a trained run to other scans,
`predict_competition` to the competition's test part.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from kit.classifier import train_classifier
from kit.competition import LABELS
from kit.embeddings import EmbeddingStore, extract_embeddings, make_series
from kit.files import read_json, write_json
from kit.lstm import train_lstm
from kit.processes import choose_workers
from kit.recipes import Recipe
from kit.report.run_page import write_report
from kit.runs.directory import (
    ALL_DATA,
    Run,
    RunError,
    begin_run,
    list_classifier_epochs,
    list_folds,
    list_lstm_epochs,
    read_recipe,
    read_slices,
    require_file,
    time_stage,
    write_frame,
)
from kit.runs.imported import import_published
from kit.runs.prediction import note_unreadable, predict_slices
from kit.runs.scoring import combine
from kit.slices.competition_files import index_competition
from kit.slices.folds import assign_folds
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
    """Everything from the competition's data to `submission.csv` and `report.html`.

    Returns the out-of-fold scores, as `score` does. Goes on where an earlier call stopped. Raises
    `RunError` where the run was begun with another recipe or on other data.
    """
    index(data, recipe, run, workers=workers, fold_table=fold_table)
    for fold in list_folds(recipe):
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
    recipe = _locate_weights(recipe, run)
    begin_run(run, recipe, data, fold_table)
    if rank() == 0 and not run.slices.exists():
        with time_stage(run, "index", run.slices):
            slices, skipped = index_competition(data, workers)
            slices["fold"] = assign_folds(slices, recipe.folds, recipe.seed, fold_table)
            write_frame(run.skipped, skipped)
            write_frame(run.slices, slices)
    wait_for_all()
    return read_slices(run)


def _locate_weights(recipe: Recipe, run: Run) -> Recipe:
    """The recipe with the file of its initial weights in full, which must be there at the start."""
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

    Returns the history, a row an epoch; empty where its embeddings come from elsewhere.
    """
    recipe, slices = read_recipe(run), read_slices(run)
    directory = run.classifier(fold)
    config = replace(recipe.classifier, seed=_derive_seed(recipe, fold, 0))
    training = _is_training(slices, fold)
    if not _is_trained(directory, config.epochs) and not _is_imported(run, recipe, fold):
        with time_stage(run, f"fold{fold} classifier", directory):
            train_classifier(
                slices[training],
                config,
                directory,
                choose_device(),
                choose_workers(workers),
                slices[~training & (slices["split"] == "train")],
                f"Fold {fold} classifier",
                deadline,
            )
    wait_for_all()
    return _read_history(directory)


def embed(
    run: Run, fold: int | str, *, workers: int | None = None, deadline: float | None = None
) -> pd.DataFrame:
    """Embed every slice by each of the fold's kept classifier epochs.

    Returns a row a store: `classifier_epoch`, `slices`, `failed`, `path`.
    """
    recipe, slices = read_recipe(run), read_slices(run)
    epochs = [] if _is_imported(run, recipe, fold) else list_classifier_epochs(recipe)
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
    return _list_stores(run, fold, recipe)


def import_embeddings(run: Run, fold: int | str, files: list[tuple[Path, Path]]) -> pd.DataFrame:
    """Take a fold's embeddings from published `.npz` files, each with the CSV of its ids.

    The LSTM can then be trained without a classifier. Returns what `embed` does. Raises
    `ValueError` for files that do not fit, and `RunError` where the recipe has no such fold or
    averages several classifier epochs, or a slice of the run has no embedding.
    """
    recipe, slices = read_recipe(run), read_slices(run)
    if fold not in list_folds(recipe):
        raise RunError(f"{run} has no fold {fold}: {', '.join(map(str, list_folds(recipe)))}")
    if recipe.bag_classifier_epochs != 1:
        raise RunError(f"{run}: embeddings from elsewhere need --bag-classifier-epochs 1")
    directory = run.store(fold, recipe.classifier.epochs)
    with time_stage(run, f"fold{fold} embeddings", directory):
        store = import_published(files, directory)
    missing = store.find_rows(slices["SOPInstanceUID"]) < 0
    if missing.any():
        (directory / "store.json").unlink()
        image = slices["SOPInstanceUID"][missing].iloc[0]
        raise RunError(f"{missing.sum()} slices of {run} have no embedding, {image} the first")
    return _list_stores(run, fold, recipe)


def fit_lstm(run: Run, fold: int | str, *, deadline: float | None = None) -> pd.DataFrame:
    """Train the LSTM of a fold on each of its embeddings, and predict held-out and test slices.

    Returns the histories, a row an epoch, `classifier_epoch` saying on which embeddings.
    """
    recipe, slices = read_recipe(run), read_slices(run)
    training = _is_training(slices, fold)
    held_out = slices[~training & (slices["split"] == "train")]
    for number, epoch in enumerate(list_classifier_epochs(recipe)):
        require_file(run.store(fold, epoch) / "store.json", f"kit embed {run} --fold {fold}")
        store, directory = EmbeddingStore(run.store(fold, epoch)), run.lstm(fold, epoch)
        config = replace(
            recipe.lstm,
            seed=_derive_seed(recipe, fold, 1 + number),
            embedding_size=store.embeddings.shape[1],
        )
        _check_source(directory, store)
        if not _is_trained(directory, config.epochs):
            for stale in directory.glob("predictions*.parquet") if rank() == 0 else ():
                stale.unlink()
            with time_stage(run, f"fold{fold} LSTM", directory):
                train_lstm(
                    make_series(store, slices[training]),
                    config,
                    directory,
                    choose_device(),
                    make_series(store, held_out),
                    f"Fold {fold} LSTM on {epoch}",
                    deadline,
                )
        if rank() == 0:
            for lstm_epoch in list_lstm_epochs(recipe):
                path = run.predictions(fold, epoch, lstm_epoch)
                if not path.exists():
                    weights = directory / f"epoch{lstm_epoch}.safetensors"
                    write_frame(
                        path, predict_slices(store, slices[~training], weights).reset_index()
                    )
    wait_for_all()
    histories = [
        _read_history(run.lstm(fold, epoch)).assign(classifier_epoch=epoch)
        for epoch in list_classifier_epochs(recipe)
    ]
    return pd.concat(histories, ignore_index=True)


def report(run: Run, series: tuple[str, ...] = ()) -> None:
    """Write `report.html`, the page that shows the run; the `series` named are surely on it."""
    if rank() == 0:
        with time_stage(run, "report", run.report):
            write_report(run, series)
    wait_for_all()


def score(run: Run) -> pd.DataFrame:
    """`combine`, and the out-of-fold log loss as a table: a row a model and fold.

    Columns are `model`, `fold` ("all" or a number), the labels and `weighted`; no row where
    nothing was held out.
    """
    scores = combine(run)["scores"]
    rows = [
        {"model": model, "fold": fold, **losses}
        for model, folds in scores.items()
        for fold, losses in folds.items()
    ]
    return pd.DataFrame(rows, columns=["model", "fold", *LABELS, "weighted"])


def _read_history(directory: Path) -> pd.DataFrame:
    path = directory / "history.json"
    return pd.DataFrame(read_json(path) if path.exists() else [])


def _list_stores(run: Run, fold: int | str, recipe: Recipe) -> pd.DataFrame:
    rows = []
    for epoch in list_classifier_epochs(recipe):
        store = EmbeddingStore(run.store(fold, epoch))
        rows.append((epoch, len(store.ids), len(store.failed), str(store.directory)))
    return pd.DataFrame(rows, columns=["classifier_epoch", "slices", "failed", "path"])


def _is_training(slices: pd.DataFrame, fold: int | str) -> np.ndarray:
    training = (slices["split"] == "train").to_numpy()
    return training if fold == ALL_DATA else training & (slices["fold"] != fold).to_numpy()


def _is_trained(directory: Path, epochs: int) -> bool:
    """Whether `fit` came to its end: the history, written last, has every epoch."""
    path = directory / "history.json"
    return path.exists() and len(read_json(path)) >= epochs


def _is_imported(run: Run, recipe: Recipe, fold: int | str) -> bool:
    """Whether the fold's embeddings come from elsewhere: then it has no classifier."""
    path = run.store(fold, recipe.classifier.epochs) / "store.json"
    return path.exists() and "imported" in read_json(path)


def _derive_seed(recipe: Recipe, fold: int | str, part: int) -> int:
    number = recipe.folds if fold == ALL_DATA else fold
    return int(np.random.SeedSequence([recipe.seed, number, part]).generate_state(1)[0] >> 1)


def _check_source(directory: Path, store: EmbeddingStore) -> None:
    """What an LSTM was trained on is written beside it; other embeddings since are refused."""
    source, path = store.provenance["weights_sha256"], directory / "source.json"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        if rank() == 0:
            write_json(path, {"embeddings_from": source})
    elif read_json(path)["embeddings_from"] != source:
        raise RunError(
            f"{directory} was trained on other embeddings than {store.directory} now holds: "
            "remove it to train anew"
        )
