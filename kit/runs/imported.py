"""Embeddings that other people's code made: published `.npz` files into a store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from kit import InputError
from kit.embeddings import EmbeddingStore, create_array, seal_store
from kit.files import hash_file, open_file, open_whole
from kit.progress import format_count
from kit.runs.directory import Run, RunError, list_folds, read_recipe
from kit.runs.status import list_stores
from kit.runs.tables import read_slices
from kit.runs.timings import time_stage

# What `zipfile` raises for files that are no archive, damaged, encrypted or compressed by a method
# that this Python lacks, and numpy for headers that are not its own.
_UNREADABLE = (
    OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def import_embeddings(run: Run, fold: int | str, files: list[tuple[Path, Path]]) -> pd.DataFrame:
    """Take the embeddings of a fold from published `.npz` files, each with the CSV of its ids.

    The LSTM can then be trained without a classifier. Returns one row per store, as `list_stores`
    does. Raises `InputError` for files that do not fit, and `RunError` if the recipe has no such
    fold or averages several classifier epochs, or if a slice of the run has no embedding.
    """
    recipe, slices = read_recipe(run), read_slices(run)
    if fold not in list_folds(recipe):
        raise RunError(f"{run} has no fold {fold}: {', '.join(map(str, list_folds(recipe)))}")
    if recipe.bag_classifier_epochs != 1:
        raise RunError(f"{run}: imported embeddings need --bag-classifier-epochs 1")
    directory = run.store(fold, recipe.classifier.epochs)
    with time_stage(run, f"fold{fold} embeddings", directory):
        store = import_published(files, directory)
    missing = store.find_rows(slices["SOPInstanceUID"]) < 0
    if missing.any():
        (directory / "store.json").unlink()
        image = slices["SOPInstanceUID"][missing].iloc[0]
        lacking = format_count(int(missing.sum()), "slice")
        raise RunError(f"{lacking} of {run} without an embedding, {image} the first")
    return list_stores(run, fold)


def import_published(files: list[tuple[Path, Path]], directory: Path) -> EmbeddingStore:
    """Make a store of published `.npz` files (`arr_0`, float32 (N, E)), each with a CSV of its ids.

    The reference implementation keeps training, validation and test slices in files of their own:
    pass all of them. A CSV has a column `SOPInstanceUID` or `Image`, or a single column, in row
    order. Arrays are read in pieces, so memory does not grow with N. Nothing pickled is loaded.
    Raises `InputError`, naming the file and the reason.
    """
    shapes = [_read_shape(npz) for npz, _ in files]
    ids = [_read_ids(csv) for _, csv in files]
    for (npz, csv), shape, names in zip(files, shapes, ids, strict=True):
        if shape[0] != len(names):
            raise InputError(f"{npz}: {shape[0]} embeddings for the {len(names)} ids of {csv}")
        if shape[1] != shapes[0][1]:
            raise InputError(f"{npz}: embeddings of {shape[1]} numbers, not {shapes[0][1]}")
    names = np.concatenate(ids)
    repeated = pd.Index(names).duplicated()
    if repeated.any():
        raise InputError(f"{files[-1][1]}: {names[repeated.argmax()]} has two embeddings")
    directory.mkdir(parents=True, exist_ok=True)
    part = directory / "embeddings.npy.part"
    store = create_array(part, (len(names), shapes[0][1]), np.float16)
    start = 0
    for (npz, _), shape in zip(files, shapes, strict=True):
        _copy_rows(npz, store[start : start + shape[0]])
        start += shape[0]
    store.flush()
    os.replace(directory / "embeddings.npy.part", directory / "embeddings.npy")
    hashes = [hash_file(npz) for npz, _ in files]
    digest = hashlib.sha256("".join(hashes).encode()).hexdigest()
    imported = {npz.name: sha256 for (npz, _), sha256 in zip(files, hashes, strict=True)}
    seal_store(directory, names, {"imported": imported, "weights_sha256": digest, "failed": {}})
    return EmbeddingStore(directory)


@contextlib.contextmanager
def _open_published(npz: Path) -> Iterator[tuple[IO[bytes], tuple[int, int], np.dtype]]:
    """Yield (file after its header, shape, dtype) of the array in a published `.npz`.

    A ValueError of the body, too, is raised as an `InputError` that names the file.
    """
    try:
        with (
            open_file(npz) as opened,
            zipfile.ZipFile(opened) as archive,
            archive.open("arr_0.npy") as file,
        ):
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if dtype.kind != "f" or len(shape) != 2 or fortran:
                raise ValueError(f"arr_0 is {dtype} {shape}, not a table of numbers")
            yield file, shape, dtype
    except _UNREADABLE as error:
        raise InputError(f"{npz}: not published embeddings that can be read ({error})") from error


def _read_shape(npz: Path) -> tuple[int, int]:
    with _open_published(npz) as (_, shape, _):
        return shape


def _copy_rows(npz: Path, store: np.ndarray) -> None:
    """Fill `store` (N, E) from a published `.npz`, 16 MB at a time."""
    with _open_published(npz) as (file, shape, dtype):
        size = shape[1] * dtype.itemsize
        step = max(1, (16 << 20) // max(1, size))
        for start in range(0, shape[0], step):
            count = min(step, shape[0] - start)
            piece = file.read(count * size)
            if len(piece) < count * size:
                raise ValueError("arr_0 is cut short")
            rows = np.frombuffer(piece, dtype).reshape(count, -1)
            if not (np.abs(rows) <= np.finfo(np.float16).max).all():
                raise ValueError(f"rows from {start} on hold values that float16 cannot hold")
            store[start : start + count] = rows


def _read_ids(csv: Path) -> np.ndarray:
    try:
        with open_whole(csv) as file:
            table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise InputError(f"{csv}: not a CSV that can be read ({error})") from error
    for name in ("SOPInstanceUID", "Image"):
        if name in table:
            return table[name].to_numpy(object)
    if table.shape[1] != 1:
        raise InputError(f"{csv}: needs a column SOPInstanceUID")
    return table.iloc[:, 0].to_numpy(object)
