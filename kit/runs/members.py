"""The members of a run's bag: the embeddings by each classifier, the predictions by each LSTM."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kit import ensemble
from kit.classifier import Classifier, load_classifier
from kit.competition import LABELS
from kit.embeddings import EmbeddingStore, extract_embeddings, make_series
from kit.lstm import load_lstm, predict_series
from kit.processes import choose_workers
from kit.progress import format_count, log, track
from kit.runs.directory import RunError
from kit.training import amp
from kit.training.distributed import choose_device

_SLOW_SIDE = 256  # pixels; models of smaller images take no time worth a word
_FEW = 5  # passes of a slice, which take no minute either


def embed_members(
    slices: pd.DataFrame, members: dict[Path, list[Path]], directory: Path, workers: int | None
) -> list[EmbeddingStore]:
    """Embed `slices` by each classifier of `members`, into stores below `directory`.

    Says before, where it takes more than a minute on a CPU, how long.
    """
    _estimate_time(list(members), len(slices))
    return [
        extract_embeddings(
            slices,
            weights,
            directory / str(number),
            choose_device(),
            choose_workers(workers),
            description=f"Embeddings {number}/{len(members)}",
        )
        for number, weights in enumerate(members, start=1)
    ]


def _estimate_time(classifiers: list[Path], slices: int) -> None:
    """Log how long the classifiers take for so many slices, by one slice through the first."""
    if choose_device().type != "cpu" or slices * len(classifiers) < _FEW:
        return
    model = load_classifier(classifiers[0])
    if model.config.image_size < _SLOW_SIDE:
        return
    each = _time_slice(model)
    minutes = each * slices * len(classifiers) / 60
    if minutes > 1:
        log.warning(
            "%s takes %.1f s a slice on this CPU: about %.0f minutes for %s by %s",
            model.config.architecture,
            each,
            minutes,
            format_count(slices, "slice"),
            format_count(len(classifiers), "classifier"),
        )


def _time_slice(model: Classifier) -> float:
    """Seconds that one slice takes on the CPU, with all its views."""
    config, started = model.config, time.monotonic()
    image = torch.zeros(1, config.image_size, config.image_size, config.channels)
    level = amp.choose_convolution_level(torch.device("cpu"), config.opt_level)
    with torch.inference_mode(), amp.autocast(torch.device("cpu"), level):
        (model.embed_views if config.test_augmentation else model.embed)(image)
    return time.monotonic() - started


def bag_members(
    slices: pd.DataFrame, members: dict[Path, list[Path]], stores: list[EmbeddingStore]
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Average the predictions of all LSTMs of `members`, each on its classifier's embeddings.

    Returns those of slices and, if all members predict series too, those of series.
    """
    pairs = [
        (store, lstm)
        for store, lstms in zip(stores, members.values(), strict=True)
        for lstm in lstms
    ]
    pooled = []

    def predict_each() -> Iterator[pd.DataFrame]:
        for store, lstm in track(pairs, "LSTMs", unit="models"):
            found, of_series = _predict_both(store, slices, lstm)
            pooled.append(of_series)
            yield found

    table = ensemble.bag(predict_each())
    whole = [of_series for of_series in pooled if of_series is not None]
    return table, ensemble.bag(whole) if len(whole) == len(pooled) else None


def predict_slices(store: EmbeddingStore, table: pd.DataFrame, weights: Path) -> pd.DataFrame:
    """Predict the slices that have an embedding by one LSTM: float32, by SOPInstanceUID."""
    return _predict_both(store, table, weights)[0]


def _predict_both(
    store: EmbeddingStore, table: pd.DataFrame, weights: Path
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """As `predict_slices`; and by series, if the model predicts those too."""
    model, series = load_lstm(weights).to(choose_device()), make_series(store, table)
    given, taken = store.embeddings.shape[1], model.config.embedding_size
    if given != taken:
        raise RunError(
            f"{weights}: takes embeddings of {taken} numbers; the classifier's have {given}"
        )
    logits, pooled = predict_series(model, series, choose_device())
    index = pd.Index(table["SOPInstanceUID"], name="SOPInstanceUID")
    slices = _find_probabilities(logits, index).dropna()
    if pooled is None:
        return slices, None
    return slices, _find_probabilities(pooled, pd.Index(series.names, name="series"))


def _find_probabilities(logits: np.ndarray, index: pd.Index) -> pd.DataFrame:
    probabilities = torch.from_numpy(logits).double().sigmoid().float().numpy()
    return pd.DataFrame(probabilities, index=index, columns=list(LABELS))
