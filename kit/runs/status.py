"""What a run directory holds: the outputs of each stage and their states, histories, stores."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kit.embeddings import EmbeddingStore
from kit.embeddings.store import EMBEDDINGS
from kit.files import read_json
from kit.recipes import Recipe
from kit.runs.directory import (
    Run,
    RunError,
    list_classifier_epochs,
    read_config,
    read_recipe,
)
from kit.runs.tables import read_slices


@dataclass(frozen=True)
class Output:
    """A file or folder that a stage writes.

    It is complete when the file `marker` is in the folder, or weights of so many `epochs`. The file
    `removable` may go when nothing needs it any more.
    """

    name: str
    path: Path
    marker: str = ""
    epochs: int = 0
    removable: str = ""


def describe_output(output: Output) -> str:
    """The state of an output: `done`, `done and removed`, `3 of 5 epochs`, `begun` or `to do`."""
    trained = 0
    if output.epochs:  # weights of earlier epochs may have been removed, those of all in the end
        weights = [read_epoch(path) for path in output.path.glob("epoch*.safetensors")]
        trained = max([len(read_epochs(output.path)), *weights])
    if (output.path / output.marker).exists() and trained >= output.epochs:
        return "done" if (output.path / output.removable).exists() else "done and removed"
    begun = f"{trained} of {output.epochs} epochs" if output.epochs else "begun"
    return begun if output.path.exists() else "to do"


def list_index(run: Run, recipe: Recipe, fold: int | str) -> list[Output]:
    return [Output("index", run.slices)]


def list_classifier(run: Run, recipe: Recipe, fold: int | str) -> list[Output]:
    epochs = recipe.classifier.epochs
    joint = [Output(f"fold {fold} joint model", run.joint(fold), epochs=epochs)]
    own = [Output(f"fold {fold} classifier", run.classifier(fold), epochs=epochs)]
    return joint + own if run.config.exists() and "joint" in read_config(run) else own


def list_embeddings(run: Run, recipe: Recipe, fold: int | str) -> list[Output]:
    return [
        Output(
            f"fold {fold} embeddings of epoch {epoch}",
            run.store(fold, epoch),
            "store.json",
            removable=EMBEDDINGS,
        )
        for epoch in list_classifier_epochs(recipe)
    ]


def list_lstms(run: Run, recipe: Recipe, fold: int | str) -> list[Output]:
    return [
        Output(
            f"fold {fold} LSTM on epoch {epoch}", run.lstm(fold, epoch), epochs=recipe.lstm.epochs
        )
        for epoch in list_classifier_epochs(recipe)
    ]


def list_results(run: Run, recipe: Recipe, fold: int | str) -> list[Output]:
    tested = not run.slices.exists() or (read_slices(run)["split"] == "test").any()
    paths = [run.metrics, run.submission] if tested else [run.metrics]
    return [Output(path.name, path) for path in paths]


def list_report(run: Run, recipe: Recipe, fold: int | str) -> list[Output]:
    return [Output(run.report.name, run.report)]


def is_removed(store: Path) -> bool:
    """Whether a store was complete, and its embeddings, the large part of it, are gone."""
    return (store / "store.json").exists() and not (store / EMBEDDINGS).exists()


def list_stores(run: Run, fold: int | str) -> pd.DataFrame:
    """The stores of a fold, one per row: `classifier_epoch`, `slices`, `failed`, `path`.

    Those that are not made yet, or whose embeddings are removed, have none.
    """
    rows = []
    for epoch in list_classifier_epochs(read_recipe(run)):
        if not (run.store(fold, epoch) / EMBEDDINGS).exists():
            continue
        store = EmbeddingStore(run.store(fold, epoch))
        rows.append((epoch, len(store.ids), len(store.failed), str(store.directory)))
    return pd.DataFrame(rows, columns=["classifier_epoch", "slices", "failed", "path"])


def read_epoch(weights: Path) -> int:
    """The number of the epoch whose weights are in the file `epoch{n}.safetensors`."""
    number = weights.stem.removeprefix("epoch")
    return int(number) if number.isdecimal() else 0


def measure_disk(run: Run) -> dict[str, int]:
    """The bytes of a run on the disk: of classifiers, embeddings, LSTMs, and everything else."""
    sizes = {"classifier": 0, "embeddings": 0, "lstm": 0, "other": 0}
    for path in run.path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process works on the run
            if path.is_file():
                part = [*path.relative_to(run.path).parts[1:2], ""][0]
                sizes[part if part in sizes else "other"] += path.stat().st_size
    return sizes


def read_history(directory: Path) -> pd.DataFrame:
    """The history of a training, one row per epoch; empty where it has not ended."""
    return pd.DataFrame(read_epochs(directory))


def read_epochs(directory: Path) -> list[dict]:
    """What `history.json` has of each epoch; nothing where the training has not ended.

    Raises `RunError` where a training did not write it.
    """
    path = directory / "history.json"
    history = read_json(path) if path.exists() else []
    for epoch in history if isinstance(history, list) else [None]:
        losses = (
            [epoch.get("loss"), epoch.get("validation_loss", 0)]
            if isinstance(epoch, dict)
            else [None]
        )
        if not all(isinstance(loss, int | float) for loss in losses):
            raise RunError(f"{path}: not the history of a training")
    return history


def is_trained(directory: Path, epochs: int) -> bool:
    """Whether training is complete: the history, which is written last, has every epoch."""
    return len(read_epochs(directory)) >= epochs
