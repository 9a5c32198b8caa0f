"""Series of embeddings: differences to the neighbours, the Dataset, the collate."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
import torch

from kit.competition import LABELS


def add_deltas(embeddings, mask=None):
    """(..., T, E) → (..., T, 3E): [e, e − e_prev, e − e_next], zeros at the ends of the series.

    NumPy or torch, in the given type. `mask` (..., T), True where a slice is real, makes the ends
    those of the real slices: a difference to a padded place is zero.
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
    holds `emb` (B, T, E), `embidx` (B, T) with −1, `labels` (B, T, 6) and the Boolean `mask` (B, T)
    with False at padded places; zeros elsewhere there.
    """
    padding = {"emb": 0, "embidx": -1, "labels": 0}
    batch = {
        name: _pad_in_front([item[name] for item in items], value)
        for name, value in padding.items()
    }
    batch["mask"] = batch["embidx"] >= 0
    return batch


def _pad_in_front(arrays: list, value: float) -> torch.Tensor:
    """(T, …) arrays, each filled up to the longest → (B, T, …)."""
    longest, first = max(map(len, arrays)), np.asarray(arrays[0])
    # NumPy: torch takes twice as long over copies as small as these.
    padded = np.full((len(arrays), longest, *first.shape[1:]), value, first.dtype)
    for row, array in enumerate(arrays):
        padded[row, longest - len(array) :] = array
    return torch.from_numpy(padded)


class SeriesDataset(torch.utils.data.Dataset):
    """One item a series, as `collate_series` takes them.

    `embeddings` is any (N, E) array, memory-mapped or not; `table` a part of the slice table, in
    its order, with `series` and, where known, the labels (zeros otherwise). `rows` (len(table),)
    gives each slice's row of `embeddings`, or −1 for a slice that has none and is left out.
    `embidx` counts the rows of `table`.
    """

    def __init__(self, embeddings, table, rows):
        rows = np.asarray(rows)
        present = np.flatnonzero(rows >= 0)
        self.embeddings, self.rows = embeddings, rows
        labelled = set(LABELS) <= set(table.columns)
        labels = table[list(LABELS)].to_numpy(np.float32) if labelled else None
        self.labels = labels if labelled else np.zeros((len(table), len(LABELS)), np.float32)
        series = table["series"].to_numpy()[present]
        starts = np.flatnonzero(series[1:] != series[:-1]) + 1 if len(series) else []
        self.positions = np.split(present, starts) if len(present) else []
        self.names = [series[0] for series in np.split(series, starts)] if len(present) else []
        if len(set(self.names)) != len(self.names):
            raise ValueError("the slices of a series do not stand together in the table")

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
        """Slices of each series, (len(self),)."""
        return np.array([len(positions) for positions in self.positions], dtype=np.int64)


def read_rows(embeddings, rows: np.ndarray) -> np.ndarray:
    """Rows of an (N, E) array in memory of their own.

    Where the array is memory-mapped the pages read are handed back, so that the process does not
    grow with the file; the system keeps them as long as it has room.
    """
    values = np.asarray(embeddings[rows])
    if isinstance(embeddings, np.memmap) and isinstance(embeddings.base, mmap.mmap):
        embeddings.base.madvise(mmap.MADV_DONTNEED)
    return values


def batch_by_length(lengths: np.ndarray, slices: int) -> Iterator[np.ndarray]:
    """Batches of series for inference: like lengths together, each at most `slices` with padding.

    A series that is longer comes alone.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * lengths[order[end]] > slices:
            yield order[start:end]
            start = end
