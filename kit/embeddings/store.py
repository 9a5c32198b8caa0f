"""A finished store of embeddings: one row per slice, memory-mapped."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from tokenize import TokenError
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike

from kit import InputError
from kit.competition import LABELS
from kit.files import name_errors, open_file, read_json, read_text, write_json, write_text
from kit.sequences import SeriesDataset

# What numpy raises for a header that is none, beside what is caught where it reads.
_MISREAD = (EOFError, SyntaxError, TokenError, LookupError, ArithmeticError, MemoryError)

EMBEDDINGS = "embeddings.npy"
PAGE = 4096  # bytes: a page of memory, and a block of most file systems


class EmbeddingStore:
    """A folder with `embeddings.npy` (N, E) float16, memory-mapped, and the slices' ids beside it.

    `ids` (N,) are SOPInstanceUIDs in row order; `failed` maps those that could not be read to the
    reason (their rows are zeros); `logits` (N, 6) float32 are the classifier's, or None;
    `provenance` says what the embeddings were made from. Raises `InputError` naming the folder.
    """

    def __init__(self, directory: Path):
        try:
            self.embeddings = open_array(directory / EMBEDDINGS, np.float16)
            self.provenance = read_json(directory / "store.json")
            self.ids = np.array(read_text(directory / "ids.txt").split("\n")[:-1])
            logits = directory / "logits.npy"
            self.logits = np.array(open_array(logits, np.float32)) if logits.exists() else None
            self.failed = dict(self.provenance["failed"])
            self.codes = dict(self.provenance.get("codes", {}))  # not in older stores
            texts = (*self.failed.values(), *self.codes.values(), self.provenance["weights_sha256"])
            if not all(isinstance(text, str) for text in texts):
                raise ValueError("store.json is not what kit writes")
            rows = {len(self.ids), len(self.embeddings if self.logits is None else self.logits)}
            if rows != {len(self.embeddings)}:
                raise ValueError(f"{len(self.ids)} ids for {len(self.embeddings)} embeddings")
            if self.logits is not None and self.logits.shape[1] != len(LABELS):
                raise ValueError("logits.npy has other columns than the labels")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{directory}: not an embedding store ({error})") from error
        self.directory = directory

    def find_rows(self, ids) -> np.ndarray:
        """The row of each SOPInstanceUID, (len(ids),); −1 for one without an embedding."""
        rows = pd.Index(self.ids).get_indexer(ids)
        if self.failed:
            rows[np.isin(np.asarray(ids, dtype=object), list(self.failed))] = -1
        return rows

    def probabilities(self, ids) -> np.ndarray:
        """The classifier's own probabilities, (len(ids), 6); NaN for a slice without any."""
        rows = self.find_rows(ids)
        probabilities = np.full((len(rows), len(LABELS)), np.nan)
        if self.logits is None:
            return probabilities
        logits = self.logits[rows[rows >= 0]].astype(np.float64)
        probabilities[rows >= 0] = 1 / (1 + np.exp(-logits))
        return probabilities


def open_array(path: Path, dtype: DTypeLike, mode: Literal["r", "r+"] = "r") -> np.memmap:
    """Map the table (N, columns) of numbers at `path`. Raises `OSError` or `ValueError`."""
    open_file(path).close()  # not a pipe, which would wait for ever
    try:
        values = np.lib.format.open_memmap(path, mode=mode)
    except _MISREAD as error:
        raise ValueError(f"{path.name} is no array ({error})") from error
    if values.dtype != dtype or values.ndim != 2:
        raise ValueError(f"{path.name} is no {np.dtype(dtype)} table")
    return values


def make_series(store: EmbeddingStore, table: pd.DataFrame) -> SeriesDataset:
    """The series of a part of the slice table, with their embeddings."""
    rows = store.find_rows(table["SOPInstanceUID"])
    logits = store.logits if store.logits is None else store.logits[rows]
    return SeriesDataset(store.embeddings, table, rows, logits)


def seal_store(directory: Path, ids: Iterable[str], provenance: dict) -> None:
    """Write the ids and, last, `store.json`, which makes the store complete."""
    write_text(directory / "ids.txt", "".join(f"{name}\n" for name in ids))
    write_json(directory / "store.json", provenance)


def create_array(path: Path, shape: tuple[int, int], dtype: DTypeLike) -> np.memmap:
    """Create a memory-mapped `.npy` file with all its room: a full disk may kill later writes.

    Its header fills a page: the rows begin with the next one.
    """
    entries = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    text = repr(entries).ljust(PAGE - 11) + "\n"
    header = np.lib.format.magic(1, 0) + struct.pack("<H", len(text)) + text.encode("ascii")
    size = PAGE + shape[0] * shape[1] * np.dtype(dtype).itemsize
    with name_errors(path), open(path, "wb") as file:
        file.write(header)
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):  # neither on macOS nor on Windows
            file.flush()
            os.posix_fallocate(file.fileno(), 0, size)
    return np.load(path, mmap_mode="r+", allow_pickle=False)
