"""The members of a run's bag: the embeddings by each classifier, the predictions by each LSTM."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kit import ensemble
from kit.classifier import Classifier
from kit.competition import LABELS
from kit.embeddings import Embedder, EmbeddingStore, extract_embeddings, make_series
from kit.lstm import SequenceModel, load_lstm, predict_by_all
from kit.processes import choose_workers
from kit.progress import format_count, log, track
from kit.runs.directory import RunError
from kit.training import amp
from kit.training.distributed import choose_device

_SLOW_SIDE = 256  # pixels; models of smaller images take no time worth a word
_READ_AT_ONCE = 64  # slices; to start processes that read so few takes longer than to read them
_FEW = 5  # passes of a slice, which take no minute either


class Loaded:
    """The models of a run that stay in memory from one prediction to the next.

    Only if there is room for all `members`; else each is loaded when it is needed, and let go.
    """

    def __init__(self, members: dict[Path, list[Path]] | None = None):
        self.device = choose_device()
        paths = [path for one, lstms in (members or {}).items() for path in (one, *lstms)]
        size = sum(path.stat().st_size for path in paths)
        self._fit = 0 < size <= _choose_room(self.device)
        self._states: dict[Path, tuple[int, int]] = {}
        self._embedders: dict[Path, Embedder] = {}
        self._lstms: dict[Path, SequenceModel] = {}
        self.seconds: float | None = None  # that a slice takes on the CPU, by the first classifier

    def find_embedder(self, weights: Path) -> Embedder:
        self._forget_changed(weights)
        found = self._embedders.get(weights) or Embedder(weights, self.device)
        if self._fit:
            self._embedders[weights] = found
        return found

    def find_lstm(self, weights: Path) -> SequenceModel:
        self._forget_changed(weights)
        found = self._lstms.get(weights) or load_lstm(weights).to(self.device)
        if self._fit:
            self._lstms[weights] = found
        return found

    def _forget_changed(self, weights: Path) -> None:
        """Forget a model whose file is another now: the manifest tells of the file."""
        found = weights.stat()
        state = found.st_size, found.st_mtime_ns
        if self._states.setdefault(weights, state) != state:
            self._states[weights] = state
            self._embedders.pop(weights, None)
            self._lstms.pop(weights, None)


def embed_members(
    slices: pd.DataFrame,
    members: dict[Path, list[Path]],
    directory: Path,
    workers: int | None,
    deadline: float | None = None,
    loaded: Loaded | None = None,
) -> list[EmbeddingStore]:
    """Embed `slices` by each classifier of `members`, into stores below `directory`.

    Says before, where it takes more than a minute on a CPU, how long.
    """
    loaded = loaded or Loaded()
    if workers is None and len(slices) <= _READ_AT_ONCE:
        workers = 0
    _estimate_time(list(members), len(slices), loaded)
    return [
        extract_embeddings(
            slices,
            loaded.find_embedder(weights),
            directory / str(number),
            loaded.device,
            choose_workers(workers),
            description=f"Embeddings {number}/{len(members)}",
            deadline=deadline,
        )
        for number, weights in enumerate(members, start=1)
    ]


def _estimate_time(classifiers: list[Path], slices: int, loaded: Loaded) -> None:
    """Log how long the classifiers take for so many slices, by one slice through the first."""
    if loaded.device.type != "cpu" or slices * len(classifiers) < _FEW:
        return
    model = loaded.find_embedder(classifiers[0]).model
    if model.config.image_size < _SLOW_SIDE:
        return
    loaded.seconds = loaded.seconds or _time_slice(model)
    minutes = loaded.seconds * slices * len(classifiers) / 60
    if minutes > 1:
        log.warning(
            "%s takes %.1f s a slice on this CPU: about %.0f minutes for %s by %s",
            model.config.architecture,
            loaded.seconds,
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
    slices: pd.DataFrame,
    members: dict[Path, list[Path]],
    stores: list[EmbeddingStore],
    loaded: Loaded | None = None,
    shares: np.ndarray | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Average the predictions of all LSTMs of `members`, each on its classifier's embeddings.

    Returns those of slices and, if all members predict series too, those of series. With `shares`
    (6,) those of slices are mixed with the classifiers', and series have none of their own.
    """
    pooled = []

    def predict_each() -> Iterator[pd.DataFrame]:
        for store, lstms in zip(stores, members.values(), strict=True):
            for found, of_series in predict_by_lstms(store, slices, lstms, loaded):
                pooled.append(of_series)
                yield found

    total = sum(map(len, members.values()))
    table = ensemble.bag(track(predict_each(), "LSTMs", total, "models"))
    if shares is not None:
        mixed = ensemble.mix_logits(average_classifiers(stores, table.index), table, shares)
        return pd.DataFrame(mixed, table.index, table.columns), None
    whole = [of_series for of_series in pooled if of_series is not None]
    return table, ensemble.bag(whole) if len(whole) == len(pooled) else None


def average_classifiers(stores: list[EmbeddingStore], ids: pd.Series) -> np.ndarray:
    """Average the classifiers' own probabilities of slices, (len(ids), 6)."""
    return np.mean([store.probabilities(ids) for store in stores], axis=0)


def predict_slices(store: EmbeddingStore, table: pd.DataFrame, weights: Path) -> pd.DataFrame:
    """Predict the slices that have an embedding by one LSTM: float32, by SOPInstanceUID."""
    return next(predict_by_lstms(store, table, [weights]))[0]


def predict_by_lstms(
    store: EmbeddingStore,
    table: pd.DataFrame,
    weights: list[Path],
    loaded: Loaded | None = None,
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame | None]]:
    """As `predict_slices` by each of several LSTMs; and by series, where a model predicts those.

    The embeddings are read once for as many LSTMs as the memory holds.
    """
    device, series = choose_device(), make_series(store, table)
    loaded = loaded or Loaded()
    index = pd.Index(table["SOPInstanceUID"], name="SOPInstanceUID")
    for group in _group_by_size(weights, _choose_room(device)):
        models = [_load_fitting(path, store, loaded) for path in group]
        for logits, pooled in predict_by_all(models, series, device):
            slices = _find_probabilities(logits, index).dropna()
            if pooled is None:
                yield slices, None
            else:
                yield slices, _find_probabilities(pooled, pd.Index(series.names, name="series"))


def _load_fitting(weights: Path, store: EmbeddingStore, loaded: Loaded) -> SequenceModel:
    model = loaded.find_lstm(weights)
    given, taken = store.embeddings.shape[1], model.config.embedding_size
    if given != taken:
        raise RunError(
            f"{weights}: takes embeddings of {taken} numbers; the classifier's have {given}"
        )
    return model


def _choose_room(device: torch.device) -> int:
    """How many bytes of models are held at once: four of full size, or what a GPU has free."""
    if device.type != "cuda":
        return 1 << 32
    return int(0.6 * torch.cuda.mem_get_info(device)[0])


def _group_by_size(paths: list[Path], room: int) -> list[list[Path]]:
    """Split a list of files into groups of at most `room` bytes, of one file at least."""
    groups: list[list[Path]] = []
    size = 0
    for path in paths:
        size += path.stat().st_size
        if not groups or size > room:
            groups.append([])
            size = path.stat().st_size
        groups[-1].append(path)
    return groups


def _find_probabilities(logits: np.ndarray, index: pd.Index) -> pd.DataFrame:
    probabilities = torch.from_numpy(logits).double().sigmoid().float().numpy()
    return pd.DataFrame(probabilities, index=index, columns=list(LABELS))
