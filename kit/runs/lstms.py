"""The LSTMs of a run, one on each set of embeddings: side by side, each by one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from kit.embeddings import EmbeddingStore, make_series
from kit.files import write_json
from kit.lstm import train_lstm
from kit.recipes import Recipe
from kit.runs import status
from kit.runs.directory import (
    ALL_DATA,
    Run,
    RunError,
    list_classifier_epochs,
    list_kept_epochs,
    list_lstm_epochs,
    read_config,
    read_document,
    read_recipe,
    require_file,
)
from kit.runs.members import predict_by_lstms
from kit.runs.provenance import refuse_joint
from kit.runs.tables import read_slices, write_frame
from kit.runs.timings import time_stage
from kit.training.distributed import all_have, choose_device, rank, work_alone, world_size
from kit.training.loop import OutOfTime


def fit_lstms(
    run: Run,
    folds: Sequence[int | str],
    epoch: int | None = None,
    deadline: float | None = None,
) -> pd.DataFrame:
    """Train the LSTMs of folds and predict held-out and test slices by them.

    `epoch` is the one classifier epoch whose embeddings are taken; otherwise each has its LSTM.
    Each process of `torchrun` trains other ones, without the others: exchanging the gradients of
    268 million weights takes longer than a step. Returns the histories, one row per epoch;
    `classifier_epoch` names the embeddings. Raises `OutOfTime` in all if one has stopped in time.
    """
    epochs = list_classifier_epochs(read_recipe(run))
    if epoch not in (None, *epochs):
        raise RunError(f"{run} embeds by classifier epochs {list(epochs)}, not by {epoch}")
    members = [(fold, each) for fold in folds for each in epochs if epoch in (None, each)]
    mine, stopped = members[rank() :: world_size()], None
    with work_alone():
        try:
            for fold, each in mine:
                _fit_lstm(run, fold, each, deadline)
        except OutOfTime as error:
            stopped = error
    if not all_have(stopped is None, choose_device()):
        raise stopped or OutOfTime("another process has stopped in time")
    histories = [
        status.read_history(run.lstm(fold, each)).assign(classifier_epoch=each)
        for fold, each in members
    ]
    return pd.concat(histories, ignore_index=True)


def _fit_lstm(run: Run, fold: int | str, epoch: int, deadline: float | None) -> None:
    """Train the LSTM on the embeddings of one classifier epoch, and predict by it."""
    recipe, slices = read_recipe(run), read_slices(run)
    require_file(run.store(fold, epoch) / "store.json", f"kit embed {run} --fold {fold}")
    store, directory = EmbeddingStore(run.store(fold, epoch)), run.lstm(fold, epoch)
    number = 1 + list_classifier_epochs(recipe).index(epoch)
    config = replace(
        recipe.lstm,
        seed=derive_seed(recipe, fold, number),
        embedding_size=store.embeddings.shape[1],
    )
    _check_source(directory, store)
    kept, kept_by_lstm = list_kept_epochs(recipe)
    needed = kept_by_lstm if epoch in kept else ()
    others = slices[~is_training(slices, fold)]

    def use(number: int) -> None:
        """Predict by an epoch; the weights of most are then needed no more, and are large."""
        if number in list_lstm_epochs(recipe):
            _predict_by_epochs(run, fold, epoch, store, others, [number])
        remove_needless(run, directory, needed, finished=False)

    if not status.is_trained(directory, config.epochs):
        refuse_joint(run, fold)
        with time_stage(run, f"fold{fold} LSTM", directory):
            _remove_stale(directory)
            train_lstm(
                make_series(store, slices[is_training(slices, fold)]),
                config,
                directory,
                choose_device(),
                make_series(store, slices[is_held_out(slices, fold)]),
                f"Fold {fold} LSTM on {epoch}",
                deadline,
                use,
            )
    numbers = list_lstm_epochs(recipe)
    left = [n for n in numbers if not run.predictions(fold, epoch, n).exists()]
    _predict_by_epochs(run, fold, epoch, store, others, left)
    remove_needless(run, directory, needed)


def _remove_stale(directory: Path) -> None:
    """Remove what an earlier training predicted, which the bag must not average."""
    if not (directory / "checkpoint.safetensors").exists():
        for stale in directory.glob("predictions*.parquet"):
            stale.unlink()


def _predict_by_epochs(
    run: Run,
    fold: int | str,
    epoch: int,
    store: EmbeddingStore,
    slices: pd.DataFrame,
    numbers: list[int],
) -> None:
    """Write the probabilities of `slices` by LSTM epochs of the classifier epoch `epoch`."""
    weights = [run.lstm(fold, epoch) / f"epoch{n}.safetensors" for n in numbers]
    for n, (found, _) in zip(numbers, predict_by_lstms(store, slices, weights), strict=True):
        write_frame(run.predictions(fold, epoch, n), found.reset_index())


def remove_needless(
    run: Run, directory: Path, needed: Sequence[int], finished: bool = True
) -> None:
    """Remove weights of epochs that are not `needed`, and of a `finished` training the checkpoint.

    A run that an earlier version began keeps what it has.
    """
    if rank() == 0 and "kept_epochs" in read_config(run)["recipe"]:
        if finished:
            (directory / "checkpoint.safetensors").unlink(missing_ok=True)
        for path in directory.glob("epoch*.safetensors"):
            if status.read_epoch(path) not in needed:
                path.unlink()


def is_training(slices: pd.DataFrame, fold: int | str) -> pd.Series:
    """Which slices the models of a fold are trained on."""
    labeled = slices["split"] == "train"
    return labeled if fold == ALL_DATA else labeled & (slices["fold"] != fold)


def is_held_out(slices: pd.DataFrame, fold: int | str) -> pd.Series:
    """Which labelled slices the models of a fold do not see."""
    return (slices["split"] == "train") & ~is_training(slices, fold)


def derive_seed(recipe: Recipe, fold: int | str, part: int) -> int:
    """The seed of a part of a fold: 0 is its classifier, others are its LSTMs."""
    number = recipe.folds if fold == ALL_DATA else int(fold)
    return int(np.random.SeedSequence([recipe.seed, number, part]).generate_state(1)[0] >> 1)


def _check_source(directory: Path, store: EmbeddingStore) -> None:
    """Note beside an LSTM which embeddings it is trained on; refuse others later."""
    source, path = store.provenance["weights_sha256"], directory / "source.json"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, {"embeddings_from": source})
    elif read_document(path).get("embeddings_from") != source:
        raise RunError(
            f"{directory} was trained on other embeddings than {store.directory} now holds: "
            "remove it to train again"
        )
