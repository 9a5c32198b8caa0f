"""What each idea past the published method is worth, one at a time, on three phantoms.

    python benchmarks/ablation.py [--seeds 11 12 13] [--patients 150] [--directory ablation]

The base is the demo recipe with a classifier of 6 epochs and an LSTM of 12, the last 3 averaged.
Each row changes one thing of it, and what trains longer has bases beside it that are trained as
long. A small set of 24 patients follows, with more epochs. It prints the tables, and writes
them to `benchmarks/STUDY.md` and a plot to `ablation.png` beside it. Two seeds run at a time; a
second call goes on where the first was stopped.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import study
import torch
from ablation_tables import draw_changes, format_small, format_table

from kit import pipeline
from kit.competition import LABELS
from kit.embeddings import EmbeddingStore, extract_embeddings, make_series
from kit.ensemble import mix_folds
from kit.lstm import load_lstm, predict_logits, train_lstm
from kit.lstm.joint import JointStart, train_joint
from kit.phantom.write import write_phantom
from kit.recipes import Recipe, find_recipe
from kit.runs.directory import Run
from kit.runs.lstms import derive_seed, is_held_out, is_training
from kit.runs.tables import read_slices
from kit.training.checkpoints import load_weights, save_tensors
from kit.training.config import JointConfig

HERE = Path(__file__).parent
CPU = torch.device("cpu")
MORE = 4  # epochs of the joint models, and by which the bases beside them are longer
# Epochs of classifier and LSTM by the number of patients: for fewer so many that steps suffice.
EPOCHS = {24: (24, 48)}


class Phantom:
    """One seed: its data, the base's classifiers and embeddings, and the rows made of them."""

    def __init__(self, seed: int, patients: int, directory: Path):
        self.patients = patients
        self.directory = directory / f"{patients}patients" / f"seed{seed}"
        classifier, lstm = EPOCHS.get(patients, (6, 12))
        changes = {"seed": seed, "classifier.epochs": classifier, "lstm.epochs": lstm}
        self.recipe = find_recipe("demo", changes)

    @cached_property
    def slices(self) -> pd.DataFrame:
        """The labelled slices that have an embedding, in the order of their series."""
        table, store = read_slices(Run(self.directory / "base")), self.open_stores("base")[0]
        return table[(table["split"] == "train") & (store.find_rows(table["SOPInstanceUID"]) >= 0)]

    def train_classifiers(self, name: str = "base", **options) -> None:
        """Train classifiers in a run of that name, and embed by them."""
        run, recipe = Run(self.directory / name), self.change(**options)
        if not (self.directory / "data").exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            write_phantom(self.directory / "data", self.patients, 64, recipe.seed, workers=1)
        pipeline.index(self.directory / "data", recipe, run, workers=0)
        for fold in recipe.train_folds:
            pipeline.fit_classifier(run, fold, workers=0)
            pipeline.embed(run, fold, workers=0)

    def change(self, **options) -> Recipe:
        return replace(self.recipe, classifier=replace(self.recipe.classifier, **options))

    def find_classifier(self, name: str, fold: int) -> Path:
        return max(
            (self.directory / name / f"fold{fold}" / "classifier").glob("epoch*.safetensors")
        )

    def open_stores(self, name: str) -> list[EmbeddingStore]:
        folders = (self.directory / name / f"fold{f}" / "embeddings" for f in (0, 1, 2))
        return [EmbeddingStore(next(folder.glob("epoch*"))) for folder in folders]

    def gather(self, predict: Callable[[int, pd.DataFrame], np.ndarray]) -> np.ndarray:
        """The probabilities (N, 6) that `predict(fold, held-out slices)` gives, of all slices."""
        found = np.full((len(self.slices), len(LABELS)), np.nan)
        for fold in self.recipe.train_folds:
            inside = is_held_out(self.slices, fold).to_numpy()
            found[inside] = predict(fold, self.slices[inside])
        return found

    def measure(self, rows: list[str]) -> None:
        """Make the rows that are not there yet."""
        for name in rows:
            path = self.directory / f"{name}.npz"
            if not path.exists():
                started = time.process_time()  # other processes take turns with this one
                probabilities, parameters = ROWS[name][1](self, name)
                seconds = time.process_time() - started
                part = self.directory / f"{name}.part.npz"
                np.savez(part, p=probabilities, seconds=seconds, parameters=parameters)
                part.rename(path)


Made = tuple[np.ndarray, int]  # probabilities (N, 6), parameters of a fold's models


def take_classifiers(phantom: Phantom, name: str) -> Made:
    """Train the base's classifiers; their own probabilities."""
    phantom.train_classifiers()
    stores = phantom.open_stores("base")
    found = phantom.gather(lambda fold, part: stores[fold].probabilities(part["SOPInstanceUID"]))
    return found, count_parameters(phantom.find_classifier("base", 0))


def train_lstms(phantom: Phantom, name: str, run: str = "base", more: int = 0, **options) -> Made:
    """LSTMs with other options, on embeddings of a run, or `more` epochs."""
    config = replace(phantom.recipe.lstm, **options)
    config, stores = replace(config, epochs=config.epochs + more), phantom.open_stores(run)
    for fold, store in enumerate(stores):
        own = replace(
            config,
            seed=derive_seed(phantom.recipe, fold, 1),
            embedding_size=store.embeddings.shape[1],
        )
        training = make_series(store, phantom.slices[is_training(phantom.slices, fold)])
        folder = phantom.directory / name / f"lstm{fold}"
        train_lstm(training, own, folder, CPU, description=f"{name} {fold}")
    numbers = range(config.epochs - 2, config.epochs + 1)
    files = [f"epoch{number}.safetensors" for number in numbers]
    return predict_by(phantom, name, run, files)


def predict_by(phantom: Phantom, name: str, run: str, files: list[str]) -> Made:
    """The mean of what LSTMs in the folders of the row `name` predict of a run's embeddings."""
    stores = phantom.open_stores(run)

    def predict(fold: int, part: pd.DataFrame) -> np.ndarray:
        paths = [phantom.directory / name / f"lstm{fold}" / file for file in files]
        return predict_mean(stores[fold], part, paths)

    one = phantom.directory / name / "lstm0" / files[0]
    used = count_parameters(phantom.find_classifier(run, 0)) + len(files) * count_parameters(one)
    return phantom.gather(predict), used


def predict_mean(store: EmbeddingStore, part: pd.DataFrame, paths: list[Path]) -> np.ndarray:
    series = make_series(store, part)
    logits = [predict_logits(load_lstm(path), series, CPU).astype(np.float64) for path in paths]
    return np.mean([1 / (1 + np.exp(-each)) for each in logits], axis=0)


def average_epochs(phantom: Phantom, name: str) -> Made:
    """One LSTM a fold whose weights are the mean of those of the base's last three epochs."""
    last = phantom.recipe.lstm.epochs
    for fold in phantom.recipe.train_folds:
        folder = phantom.directory / name / f"lstm{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        base = phantom.directory / "base" / f"lstm{fold}"
        epochs = [load_weights(base / f"epoch{last - n}.safetensors") for n in (2, 1, 0)]
        mean = {key: sum(weights[key] for weights, _ in epochs) / 3 for key in epochs[0][0]}
        save_tensors(folder / "mean.safetensors", mean, epochs[0][1])
    return predict_by(phantom, name, "base", ["mean.safetensors"])


def train_with(phantom: Phantom, name: str, more: int = 0, **options) -> Made:
    """Classifiers with other options, or `more` epochs; LSTMs as the base's on their embeddings."""
    epochs = phantom.recipe.classifier.epochs + more
    phantom.train_classifiers(name, epochs=epochs, **options)
    return train_lstms(phantom, name, name)


def train_joints(phantom: Phantom, name: str, shuffled: bool = False, **options) -> Made:
    """Joint models, begun with the base's classifiers and LSTMs."""
    table, used = phantom.slices, 0
    if shuffled:  # the control: within each series
        table = table.sample(frac=1, random_state=phantom.recipe.seed)
        table = table.sort_values("series", kind="stable")
    config = JointConfig(epochs=MORE, seed=phantom.recipe.seed, **options)
    last = f"epoch{phantom.recipe.lstm.epochs}.safetensors"

    def predict(fold: int, part: pd.DataFrame) -> np.ndarray:
        nonlocal used
        lstm = phantom.directory / "base" / f"lstm{fold}" / last
        start = JointStart(config, phantom.find_classifier("base", fold), lstm)
        folder = phantom.directory / name / f"fold{fold}"
        training = table[is_training(table, fold)]
        train_joint(training, start, folder, CPU, 0, description=f"{name} {fold}")
        classifier, sequence = (folder / f"{n}.safetensors" for n in ("classifier", "sequence"))
        store = extract_embeddings(part, classifier, folder / "store", CPU, 0)
        used = count_parameters(classifier) + count_parameters(sequence)
        seen = table.loc[table.index.isin(part.index)]
        found = pd.DataFrame(predict_mean(store, seen, [sequence]), seen.index)
        return found.loc[part.index].to_numpy()

    return phantom.gather(predict), used


def mix_base(phantom: Phantom, name: str) -> Made:
    """The base's LSTMs and classifiers, mixed in shares that other folds' slices give."""
    parts = [np.load(phantom.directory / f"{part}.npz") for part in ("classifier", "base")]
    labels, folds = phantom.slices[list(LABELS)].to_numpy(), phantom.slices["fold"].to_numpy()
    found = mix_folds(labels, folds, *(part["p"] for part in parts))
    return found, int(parts[1]["parameters"])


def count_parameters(path: Path) -> int:
    """The numbers in a file of weights."""
    return sum(value.numel() for value in load_weights(path)[0].values())


def row(make: Callable[..., Made], text: str, **options) -> tuple[str, Callable[..., Made]]:
    return text, functools.partial(make, **options)


GRU = {"model": "gru", "deltas": False, "standardize": False, "embedding_dropout": 0.0}
ROWS = {
    "classifier": row(take_classifiers, "classifier alone"),
    "base": row(train_lstms, "**base**: LSTM, the last three epochs averaged"),
    "longer": row(train_lstms, "LSTM of 16 epochs", more=MORE),
    "dropout": row(train_lstms, "LSTM with half of the channels dropped", embedding_dropout=0.5),
    "soup": row(average_epochs, "weights of the last three epochs averaged: one LSTM"),
    "gru": row(train_lstms, "GRU form of the sequence model", **GRU),
    "mixed": row(mix_base, "LSTMs mixed with the classifiers, per label"),
    "neighbours": row(train_with, "classifier sees three slices", neighbours=(-1, 0, 1)),
    "long": row(train_with, "classifier of 10 epochs, then LSTM of 12", more=MORE),
    "longest": row(train_lstms, "classifier of 10 epochs, then LSTM of 16", run="long", more=MORE),
    "frozen": row(
        train_joints, "LSTM alone on augmented slices, 4 more epochs", freeze_classifier=True
    ),
    "joint": row(train_joints, "joint model, 4 more epochs"),
    "shuffled": row(train_joints, "control: joint model, slices shuffled", shuffled=True),
}
SMALL_ROWS = ["classifier", "base", "dropout", "mixed", "frozen", "joint"]


def main() -> None:
    """Run the seeds, two at a time, and write the tables."""
    options = study.read_options(__doc__, 150, Path("ablation"))
    sets = {options.patients: list(ROWS), **dict.fromkeys(EPOCHS, SMALL_ROWS)}
    phantoms = {
        patients: [Phantom(seed, patients, options.directory) for seed in options.seeds]
        for patients in sets
    }
    if options.only is not None:
        for patients, rows in sets.items():
            Phantom(options.only, patients, options.directory).measure(rows)
        return
    study.run_seeds(Path(__file__), options)
    texts = {name: text for name, (text, _) in ROWS.items()}
    table = format_table(phantoms[options.patients], texts)
    small = format_small([phantoms[patients] for patients in EPOCHS], texts)
    for text in (table, small):
        study.replace_section(HERE / "STUDY.md", text)
        print(text)
    draw_changes(phantoms[options.patients], texts, HERE / "ablation.png")


if __name__ == "__main__":
    main()
