"""The LSTMs of a run, one on each set of embeddings: side by side, each by one process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kit.embeddings import EmbeddingStore, make_series
from kit.embeddings.store import EMBEDDINGS
from kit.files import write_json
from kit.lstm import make_model, train_lstm
from kit.progress import log
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
from kit.runs.room import weigh_training
from kit.runs.tables import read_slices, write_frame
from kit.runs.timings import time_stage
from kit.training.checkpoints import load_weights, save_tensors
from kit.training.distributed import all_have, choose_device, rank, work_alone, world_size
from kit.training.loop import OutOfTime

_Member = tuple[int | str, int]  # a fold and the classifier epoch on whose embeddings it is trained
_MEAN = "mean.safetensors"  # of the weights of the epochs to average, while they are trained


def fit_lstms(
    run: Run,
    folds: Sequence[int | str],
    epochs: Sequence[int] | None = None,
    deadline: float | None = None,
) -> pd.DataFrame:
    """Train the LSTMs of folds and predict held-out and test slices by them.

    `epochs` are the classifier epochs whose embeddings are taken, by default all. Each process of
    `torchrun` trains other LSTMs, without the others: exchanging the gradients of 268 million
    weights takes longer than a step. Where the disk has no room for so many, the first trains them
    one after the other. Returns the histories, one row per epoch; `classifier_epoch` names the
    embeddings. Raises `OutOfTime` in all if one has stopped in time.
    """
    recipe = read_recipe(run)
    known = list_classifier_epochs(recipe)
    for epoch in epochs or ():
        if epoch not in known:
            raise RunError(f"{run} embeds by classifier epochs {list(known)}, not by {epoch}")
    members = [(fold, each) for fold in folds for each in epochs or known]
    mine, stopped = _share_members(run, recipe, members), None
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


def _share_members(run: Run, recipe: Recipe, members: list[_Member]) -> list[_Member]:
    """The members that this process trains: all have a share if the disk has room for that."""
    left = [(fold, epoch) for fold, epoch in members if not _has_predicted(run, fold, epoch)]
    most = min(world_size(), len(left))
    room = most < 2 or shutil.disk_usage(run.path).free > most * _measure_room(run, recipe, left[0])
    if all_have(room, choose_device()):
        return members[rank() :: world_size()]
    log.warning("The disk has no room to train %s at once: one after the other", f"{most} LSTMs")
    return [] if rank() else members


def _measure_room(run: Run, recipe: Recipe, member: _Member) -> int:
    """The bytes that the training of an LSTM takes at most."""
    if not (run.store(*member) / EMBEDDINGS).exists():
        return 0  # it cannot be trained, which will be said
    size = EmbeddingStore(run.store(*member)).embeddings.shape[1]
    with torch.device("meta"):
        model = make_model(replace(recipe.lstm, embedding_size=size))
    weights = sum(value.nbytes for value in model.state_dict().values())
    staying = len(list_kept_epochs(recipe)[1]) + recipe.average_weights  # and their mean
    return weigh_training(weights, staying)


def _has_predicted(run: Run, fold: int | str, epoch: int) -> bool:
    """Whether all averaged epochs of an LSTM have predicted, so that it is complete."""
    recipe = read_recipe(run)
    return status.is_trained(run.lstm(fold, epoch), recipe.lstm.epochs) and all(
        run.predictions(fold, epoch, number).exists() for number in list_lstm_epochs(recipe)
    )


def _fit_lstm(run: Run, fold: int | str, epoch: int, deadline: float | None) -> None:
    """Train the LSTM on the embeddings of one classifier epoch, and predict by it.

    Then what nobody needs any more is removed.
    """
    recipe, store = read_recipe(run), run.store(fold, epoch)
    require_file(store / "store.json", f"kit embed {run} --fold {fold}")
    _check_source(run.lstm(fold, epoch), store)
    kept, kept_by_lstm = list_kept_epochs(recipe)
    needed = kept_by_lstm if epoch in kept else range(0)
    if not _has_predicted(run, fold, epoch):
        if status.is_removed(store):
            raise RunError(
                f"{store}: its embeddings were removed when their LSTM had predicted; "
                f"remove the folder and run `kit embed {run} --fold {fold}` to train another"
            )
        _train_and_predict(run, fold, epoch, needed, deadline)
    remove_needless(run, run.lstm(fold, epoch), needed)
    _remove_store(run, recipe, fold, epoch)


def _train_and_predict(
    run: Run, fold: int | str, epoch: int, needed: Sequence[int], deadline: float | None
) -> None:
    recipe, slices = read_recipe(run), read_slices(run)
    store, directory = EmbeddingStore(run.store(fold, epoch)), run.lstm(fold, epoch)
    number = 1 + list_classifier_epochs(recipe).index(epoch)
    config = replace(
        recipe.lstm,
        seed=derive_seed(recipe, fold, number),
        embedding_size=store.embeddings.shape[1],
    )
    others = slices[~is_training(slices, fold)]

    def use(number: int) -> None:
        """Predict by an epoch; the weights of most are then needed no more, and are large."""
        if recipe.average_weights:
            _add_to_mean(directory, number, config.epochs - recipe.bag_lstm_epochs + 1)
        elif number in list_lstm_epochs(recipe):
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
    if (directory / _MEAN).exists():
        os.replace(directory / _MEAN, directory / f"epoch{config.epochs}.safetensors")
    numbers = list_lstm_epochs(recipe)
    left = [n for n in numbers if not run.predictions(fold, epoch, n).exists()]
    _predict_by_epochs(run, fold, epoch, store, others, left)


def _add_to_mean(directory: Path, epoch: int, first: int) -> None:
    """Add the weights of an epoch to the mean of those from `first` on; earlier ones are left out.

    An epoch that is trained again after a crash counts once.
    """
    path = directory / _MEAN
    if epoch < first:
        return
    weights, metadata = load_weights(directory / f"epoch{epoch}.safetensors")
    if epoch > first:
        mean, noted = load_weights(path)
        if noted["epoch"] >= epoch:
            return
        share = 1 / (epoch - first + 1)
        weights = {name: mean[name].lerp(value, share) for name, value in weights.items()}
    save_tensors(path, weights, {**metadata, "epoch": epoch})


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


def _remove_store(run: Run, recipe: Recipe, fold: int | str, epoch: int) -> None:
    """Remove the embeddings of an epoch whose LSTM has predicted, unless its weights stay.

    Those outside the run, and those of a run that an earlier version began, stay too.
    """
    path = run.store(fold, epoch) / EMBEDDINGS
    needless = (
        epoch not in list_kept_epochs(recipe)[0] and "kept_epochs" in read_config(run)["recipe"]
    )
    if needless and run.path.resolve() in path.resolve().parents:
        path.unlink(missing_ok=True)


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


def _check_source(directory: Path, store: Path) -> None:
    """Note beside an LSTM which embeddings it is trained on; refuse others later."""
    path = directory / "source.json"
    source = read_document(store / "store.json", {"weights_sha256": str})["weights_sha256"]
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, {"embeddings_from": source})
    elif read_document(path).get("embeddings_from") != source:
        raise RunError(
            f"{directory} was trained on other embeddings than {store} now holds: "
            "remove it to train again"
        )
