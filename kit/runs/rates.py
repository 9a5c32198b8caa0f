"""How fast this machine reads, trains and embeds: a minute of a run's own work, timed."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from kit import InputError, images
from kit.classifier import Classifier
from kit.classifier import compute_loss as compute_image_loss
from kit.competition import LABELS
from kit.lstm import compute_loss as compute_series_loss
from kit.lstm import make_model, predict_logits
from kit.recipes import Recipe
from kit.sequences import SeriesDataset, collate_series
from kit.slices.index import index_files
from kit.training import amp
from kit.training.config import ClassifierConfig, TrainingConfig
from kit.training.distributed import choose_device
from kit.training.inference import fuse_normalization, predict
from kit.training.loop import Task, fit, seed_random

SERIES_SLICES = 34.6  # 752,803 slices of the competition's training part in 21,744 series
_LENGTHS = (20, 60)  # the shortest and the longest series among 2,214 of the competition

_FILES = 20_000  # sampled at most; disjoint parts of them serve the measurements
_HEADERS = (320, 8192)  # files of a measurement; above 256 the index reads in several processes
_WARM_UP = 2  # steps: memory is allocated, kernels are chosen or compiled
_SERIES = 64  # that the LSTM's forward pass is timed on
_CPU_PIXELS = 2**17  # of a training batch on a CPU: 32 images of 64 px, 2 of 480 px


@dataclass(frozen=True)
class Rates:
    """What was measured; per second, unless named otherwise. Reading is by all workers together.

    `trained` and `embedded` are images on one device at `image_size`, without reading: `embedded`
    with all views of the recipe. `lstm_slices` are those of a forward pass of the LSTM. Every pass
    over images begins with `reading_start` seconds in which the workers start.
    """

    image_size: int
    headers: float
    training_images: float  # read and augmented
    images: float
    reading_start: float
    trained: float
    embedded: float
    lstm_step_seconds: float
    lstm_slices: float
    embedding_size: int
    classifier_bytes: int
    lstm_bytes: int


def measure_rates(paths: list[str], recipe: Recipe, workers: int, seconds: float) -> Rates:
    """Measure with a sample of the files `paths`, in about `seconds`, but a step of each at least.

    The models have random weights. The sample is another at every call: files that an earlier call
    has read lie in the system's memory, and would seem to lie on a fast disk.
    """
    chosen = np.random.default_rng().permutation(len(paths))[:_FILES]
    thirds = [[paths[number] for number in part] or paths for part in np.array_split(chosen, 3)]
    tables = [_make_table(third) for third in thirds]
    config, device, each = recipe.classifier, choose_device(), seconds / 6
    read = partial(measure_images, workers=workers, seconds=each)
    with seed_random(0, device):
        augmented, started = read(tables[1], config)
        classifier = measure_classifier(tables[2], config, device, each)
        return Rates(
            image_size=config.image_size,
            headers=_measure_headers(thirds[0], workers, each),
            training_images=augmented,
            images=read(tables[2], replace(config, augment=False))[0],
            reading_start=started,
            **classifier,
            **_measure_lstm(recipe, classifier["embedding_size"], device, each),
        )


def _make_table(paths: list[str]) -> pd.DataFrame:
    """A slice table of files as if they were whole series, which some models read together."""
    table = pd.DataFrame(0.0, np.arange(len(paths)), list(LABELS))
    return table.assign(path=paths, series=np.arange(len(paths)) // round(SERIES_SLICES))


def _measure_headers(paths: list[str], workers: int, seconds: float) -> float:
    """Files indexed a second, once the processes have started."""
    first = paths[: _HEADERS[0]]
    started = time.perf_counter()
    index_files(first, "sample", workers)
    rate = len(first) / (time.perf_counter() - started)
    rest = paths[len(first) :][: int(np.clip(rate * seconds, *_HEADERS))]
    if len(rest) < len(first):  # so few files that the start counts
        return rate
    started = time.perf_counter()
    index_files(rest, "sample", workers)
    return len(rest) / (time.perf_counter() - started)


def measure_images(
    table: pd.DataFrame, config: ClassifierConfig, workers: int, seconds: float
) -> tuple[float, float]:
    """Images read a second by `workers` processes, and the seconds until the first batch came.

    In the order of `table`, or as for training.
    """
    dataset = images.SliceDataset(table, config, config.augment)
    rows = np.arange(len(table))
    if config.augment:
        rows = np.random.default_rng(0).permutation(rows)
    size = images.choose_reading(config, 8)
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    # What the workers had read ahead when the first batch came is not counted.
    meter = _Meter(torch.device("cpu"), seconds, min(2 * workers, len(batches) // 4))
    loader, begun = images.load_batches(dataset, batches, workers), time.perf_counter()
    first = next(loader)
    started = time.perf_counter() - begun
    for batch in itertools.chain([first], loader):
        if meter.add(len(batch["rows"]) + len(batch["failed"])):
            break
    return meter.rate(), started


def measure_classifier(
    table: pd.DataFrame, config: ClassifierConfig, device: torch.device, seconds: float
) -> dict[str, Any]:
    """`trained`, `embedded`, `embedding_size` and `classifier_bytes` of `Rates`.

    One batch of `table` serves for all. Raises `InputError` where none of its files gives an image.
    """
    if device.type == "cpu":
        small = max(2, min(config.batch_size, _CPU_PIXELS // config.image_size**2))
        config = replace(config, batch_size=small)
    model = Classifier(config).to(device)
    width, weight = model.embedding_size, _weigh(model)

    batch = _read_batch(table, config, config.batch_size)
    task = Task(config.batch_size, lambda *_: itertools.repeat(batch), compute_image_loss)
    trained = len(batch["rows"]) / _time_training(model, config, task, device, seconds)
    model = Classifier(config).to(device).eval()
    model.backbone = fuse_normalization(model.backbone)
    embed = model.embed_views if config.test_augmentation else model.embed
    batch = _read_batch(table, config, images.choose_batch(config.image_size, device))
    meter = _Meter(device, seconds, _WARM_UP)
    outputs = predict(
        lambda batch: embed(images.join_neighbours(batch)),
        itertools.repeat(batch),
        device,
        amp.choose_convolution_level(device, config.opt_level),
    )
    while not meter.add(len(next(outputs)[1])):
        pass
    return {
        "trained": trained,
        "embedded": meter.rate(),
        "embedding_size": width,
        "classifier_bytes": weight,
    }


def _read_batch(table: pd.DataFrame, config: ClassifierConfig, size: int) -> dict:
    rows = np.arange(size) % len(table)
    (batch,) = images.load_batches(images.SliceDataset(table, config), [rows], workers=0)
    if batch["image"] is None:
        row, reason = batch["failed"][0]
        raise InputError(f"no file of a sample gives an image; {table['path'][row]}: {reason}")
    return batch


def _measure_lstm(
    recipe: Recipe, embedding_size: int, device: torch.device, seconds: float
) -> dict[str, Any]:
    """`lstm_step_seconds`, `lstm_slices` and `lstm_bytes` of `Rates`, at the competition's lengths.

    They have their mean and range; embeddings are in memory.
    """
    config = replace(recipe.lstm, embedding_size=embedding_size)
    model = make_model(config).to(device)
    series = _draw_series(max(_SERIES, config.batch_size), embedding_size)
    batch = collate_series([series[number] for number in range(config.batch_size)])

    task = Task(config.batch_size, lambda *_: itertools.repeat(batch), compute_series_loss)
    step = _time_training(model, config, task, device, seconds)
    model = make_model(config).to(device)  # training leaves it in its own precision
    meter = _Meter(device, seconds / 2, 1)
    while not meter.add(len(predict_logits(model, series, device))):
        pass
    return {
        "lstm_step_seconds": step,
        "lstm_slices": meter.rate(),
        "lstm_bytes": _weigh(model),
    }


def _draw_series(count: int, embedding_size: int) -> SeriesDataset:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.normal(SERIES_SLICES, 6, count).round(), *_LENGTHS).astype(int)
    names = np.repeat([f"series {number}" for number in range(count)], lengths)
    embeddings = rng.random((len(names), embedding_size), np.float32).astype(np.float16)
    table, logits = pd.DataFrame({"series": names}), np.zeros((len(names), len(LABELS)), np.float32)
    return SeriesDataset(embeddings, table, np.arange(len(names)), logits)


def _weigh(model: nn.Module) -> int:
    """Bytes of a model's weights in a file."""
    return sum(value.nbytes for value in model.state_dict().values())


class _Enough(Exception):
    """Ends a training that is only timed."""


def _time_training(
    model: nn.Module, config: TrainingConfig, task: Task, device: torch.device, seconds: float
) -> float:
    """Seconds that `fit` takes a step, of a task whose batches never end."""
    meter = _Meter(device, seconds, _WARM_UP)

    def make_batches(epoch: int, shares: Iterable[np.ndarray]) -> Iterator[dict | None]:
        batches = iter(task.make_batches(epoch, []))
        for _ in shares:
            yield next(batches)
            if meter.add(1):  # the loop asks for the next batch: the step has been taken
                raise _Enough

    # More steps than can be taken in time: an epoch that ends writes its weights.
    steps = replace(task, examples=task.examples * 4096, make_batches=make_batches)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_Enough):
        fit(model, config, steps, Path(folder), description="Measuring")
    return 1 / meter.rate()


class _Meter:
    """A rate over `seconds`, from the end of the first `warm_up` counts on."""

    def __init__(self, device: torch.device, seconds: float, warm_up: int):
        self.device, self.seconds, self.warm_up = device, seconds, warm_up
        self.started = self.now = time.perf_counter()
        self.items = 0

    def add(self, items: int) -> bool:
        """Count `items` that are done; tell whether the time is over, by a whole count at least."""
        if self.warm_up > 0:
            self.warm_up -= 1
            if self.warm_up == 0:
                self.started = self._wait()
            return False
        self.items, self.now = self.items + items, time.perf_counter()
        if self.now - self.started < self.seconds:
            return False
        self.now = self._wait()
        return True

    def rate(self) -> float:
        return self.items / (self.now - self.started)

    def _wait(self) -> float:
        """The time, once the device has done what was begun."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
