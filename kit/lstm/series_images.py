"""Whole series as batches of images: the slices of a series, augmented alike, padded in front."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from kit import images
from kit.classifier import load_usable
from kit.sequences import SeriesDataset, collate_series
from kit.training.config import ClassifierConfig


class SeriesImages:
    """The series of a slice table as batches of images; slices that give none are left out.

    `augment` draws once a series and epoch: alike for all its slices, else the differences of
    neighbours would mean nothing.
    """

    def __init__(
        self, table: pd.DataFrame, config: ClassifierConfig, augment: bool, seed: int, cache: Any
    ):
        self.slices = images.SliceDataset(table, config, augment, seed, cache)
        nothing = np.empty((len(table), 0), np.float16)
        series = SeriesDataset(nothing, table, np.arange(len(table)))
        self.positions, self.names = series.positions, series.names
        self.owners = np.repeat(np.arange(len(series)), series.lengths())
        self.slices.draws = self.owners

    def __len__(self) -> int:
        return len(self.positions)

    def list_rows(self, batches: list[np.ndarray]) -> list[np.ndarray]:
        """The rows of the table that the series of each batch have."""
        return [np.concatenate([self.positions[n] for n in numbers]) for numbers in batches]

    def make_batches(
        self, epoch: int, batches: list[np.ndarray], workers: int
    ) -> Iterator[dict | None]:
        """A batch for each array of series' numbers; None where no slice can be read."""
        self.slices.epoch = epoch
        for batch in load_usable(self.slices, self.list_rows(batches), workers):
            yield None if batch is None else self.gather(batch)

    def gather(self, batch: dict) -> dict:
        """A batch of `images.load_batches` by series, padded in front.

        `image` (N, S, S, windows), `parts` (B, T, K), `labels` (B, T, 6), `mask` (B, T), `names`.
        """
        owners = self.owners[batch["rows"]]
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        columns = {"emb": batch["parts"], "embidx": batch["rows"], "labels": batch["labels"]}
        found = {name: np.split(np.asarray(c), starts[1:]) for name, c in columns.items()}
        items = [dict(zip(found, item, strict=True)) for item in zip(*found.values(), strict=True)]
        made = collate_series(items)
        return {
            "image": batch["image"],
            "parts": made["emb"],
            "labels": made["labels"],
            "mask": made["mask"],
            "names": [self.names[number] for number in owners[starts]],
        }
