"""Series of embeddings: differences to the neighbouring slices, the Dataset, the batches."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from kit import InputError
from kit.competition import LABELS


def add_deltas(embeddings, mask=None):
    """(..., T, E) → (..., T, 3E): [e, e − e_prev, e − e_next], zeros at the ends of the series.

    Takes NumPy or torch and keeps the type. With `mask` (..., T), True at real slices, the ends are
    those of the real slices: a difference to a padded position is zero.
    """
    size, shape = embeddings.shape[-1], (*embeddings.shape[:-1], 3 * embeddings.shape[-1])
    tensor = isinstance(embeddings, torch.Tensor)
    joined = embeddings.new_empty(shape) if tensor else np.empty(shape, embeddings.dtype)
    joined[..., :size] = embeddings
    to_previous, to_next = joined[..., size : 2 * size], joined[..., 2 * size :]
    to_previous[..., 0, :] = to_next[..., -1, :] = 0
    steps = embeddings[..., 1:, :] - embeddings[..., :-1, :]
    if mask is not None:
        real = mask > 0
        steps *= (real[..., 1:] & real[..., :-1])[..., None]
    to_previous[..., 1:, :], to_next[..., :-1, :] = steps, -steps
    return joined


def collate_series(items: list[dict]) -> dict[str, torch.Tensor]:
    """Stack series of different lengths, padded in front to the longest.

    Items hold `emb` (T, E), `embidx` (T,) from 0 on and `labels` (T, 6), NumPy or torch. The result
    holds `emb` (B, T, E), `embidx` (B, T), `labels` (B, T, 6) and the Boolean `mask` (B, T). At
    padded positions `mask` is False, `embidx` −1, and the rest zero.
    """
    padding = {"emb": 0, "embidx": -1, "labels": 0}
    batch = {
        name: _pad_in_front([item[name] for item in items], value)
        for name, value in padding.items()
    }
    batch["mask"] = batch["embidx"] >= 0
    return batch


def _pad_in_front(arrays: list, value: float) -> torch.Tensor:
    """Arrays (T, …), padded with `value` to the longest → (B, T, …)."""
    longest, first = max(map(len, arrays)), np.asarray(arrays[0])
    # Copies as small as these take torch twice as long as NumPy.
    padded = np.full((len(arrays), longest, *first.shape[1:]), value, first.dtype)
    for row, array in enumerate(arrays):
        padded[row, longest - len(array) :] = array
    return torch.from_numpy(padded)


class SeriesDataset(torch.utils.data.Dataset):
    """The series of a table, one item each, as `collate_series` takes them.

    `embeddings` is any (N, E) array, memory-mapped or not. `table` is a part of the slice table, in
    its order, with `series` and perhaps the labels (otherwise they are zeros). `rows` (len(table),)
    gives each slice's row of `embeddings`, or −1 for a slice that has none and is left out.
    `logits` (len(table), 6) are the classifier's, where a model mixes them with its own.
    `embidx` counts the rows of `table`. Raises `InputError` for a series whose slices are not
    next to each other.
    """

    def __init__(
        self, embeddings: np.ndarray, table: pd.DataFrame, rows, logits: np.ndarray | None = None
    ):
        rows = np.asarray(rows)
        present = np.flatnonzero(rows >= 0)
        self.embeddings, self.rows, self.logits = embeddings, rows, logits
        self.labels = np.zeros((len(table), len(LABELS)), np.float32)
        if set(LABELS) <= set(table.columns):
            self.labels = table[list(LABELS)].to_numpy(np.float32)
        series = table["series"].to_numpy()[present]
        starts = np.flatnonzero(series[1:] != series[:-1]) + 1
        self.positions = np.split(present, starts) if len(present) else []
        self.names = [names[0] for names in np.split(series, starts)] if len(present) else []
        if len(set(self.names)) != len(self.names):
            raise InputError("the slices of a series are not next to each other in the table")

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        positions = self.positions[index]
        return {
            "emb": read_rows(self.embeddings, self.rows[positions]),
            "embidx": positions,
            "labels": self.labels[positions],
        }

    def lengths(self) -> np.ndarray:
        """The number of slices of each series, (len(self),)."""
        return np.array([len(positions) for positions in self.positions], dtype=np.int64)


def read_rows(embeddings: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Copy rows of an (N, E) array.

    Of a memory-mapped array the pages are given back after reading, so that the process does not
    grow with the file; the system still caches them while it has room.
    """
    values = np.asarray(embeddings[rows])
    if not hasattr(mmap, "MADV_DONTNEED"):  # on Windows
        return values
    if isinstance(embeddings, np.memmap) and isinstance(embeddings.base, mmap.mmap):
        embeddings.base.madvise(mmap.MADV_DONTNEED)
    return values


def batch_by_length(lengths: np.ndarray, slices: int) -> Iterator[np.ndarray]:
    """Yield batches of series of similar length, each of at most `slices` slices with padding.

    A series longer than that is a batch of its own.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * lengths[order[end]] > slices:
            yield order[start:end]
            start = end
