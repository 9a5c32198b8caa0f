"""Rows with an absolute limit: memory of the large stages, opening a run, start of the program."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pandas as pd
import rows
import samples


def make_training_memory(directory: Path, amount: int) -> rows.Row:
    """An epoch of a small LSTM over `amount` slices; the embeddings are a sparse file."""
    import shutil

    import torch

    from kit.embeddings import make_series
    from kit.lstm import LSTMConfig, train_lstm

    store, table = write_store(directory, amount)
    config = LSTMConfig(hidden_size=16, epochs=1, batch_size=64, opt_level="O0", deltas=False)

    def train():
        out = directory / "trained"
        shutil.rmtree(out, ignore_errors=True)
        train_lstm(make_series(open_store(store), table), config, out, torch.device("cpu"))

    return rows.Row(
        f"LSTM training over {amount} × {rows.EMBEDDING} embeddings (one epoch, 16 units)",
        train,
        memory=2.0,
        rounds=1,
    )


def make_step_memory(directory: Path, amount: int, hidden: int = rows.HIDDEN) -> rows.Row:
    """Half a minute of training the full-size LSTM on the same data, and a checkpoint."""
    import shutil
    import time

    import torch

    from kit.embeddings import make_series
    from kit.lstm import LSTMConfig, SequenceLSTM, train_lstm
    from kit.training.loop import OutOfTime

    store, table = write_store(directory, amount)
    config = LSTMConfig(hidden_size=hidden, epochs=1)
    with torch.device("meta"):
        weights = sum(value.numel() for value in SequenceLSTM(config).parameters()) * 4

    def train():
        out = directory / "begun"
        shutil.rmtree(out, ignore_errors=True)
        series = make_series(open_store(store), table)
        with contextlib.suppress(OutOfTime):
            train_lstm(series, config, out, torch.device("cpu"), deadline=time.monotonic() + 30)

    return rows.Row(
        f"the same with {hidden} units, 30 s; beyond weights, gradients and optimizer",
        train,
        memory=2.0,
        model=4 * weights / 1e9,  # the weights, their gradients, Adam's two moments
        rounds=1,
    )


def make_index_memory(directory: Path, amount: int) -> rows.Row:
    """Index `amount` slices; headers come from a table, because so many files would take hours."""
    from kit.dicom import header as dicom
    from kit.dicom.header import Header
    from kit.slices.index import index_files

    table = samples.make_slice_table(amount)
    header = dicom.read_header(next((samples.write_headers(directory, 1)).iterdir()))
    columns = {name: table[name].to_list() for name in table}
    paths = [f"{number}" for number in range(amount)]

    def read_header(path: str) -> Header:
        row = {name: values[int(path)] for name, values in columns.items()}
        for name in ("ImagePositionPatient", "ImageOrientationPatient"):
            row[name] = row[name].strip("[]").replace("'", "").replace(", ", "\\")
        return header._replace(values={**header.values, **row})

    def index():
        dicom.read_header, original = read_header, dicom.read_header
        try:
            index_files(paths, "a table", workers=1)
        finally:
            dicom.read_header = original

    return rows.Row(f"index of {amount} slices (headers given)", index, memory=2.0, rounds=1)


def make_opening(directory: Path, amount: int) -> rows.Row:
    """Open a run of `amount` slices: recipe, slice table, and embeddings with their ids."""
    from kit.recipes import RECIPES
    from kit.runs.directory import Run, begin_run, read_recipe
    from kit.runs.tables import read_slices, write_frame

    store, table = write_store(directory, amount)
    run = Run(directory / f"opened{amount}")
    if not run.path.exists():
        begin_run(run, RECIPES["single"], directory)
        whole = samples.make_slice_table(amount).assign(
            split="train", fold=0, path="", seq=1, position=0.0, repaired=False
        )
        write_frame(run.slices, pd.concat([whole, table.drop(columns="SOPInstanceUID")], axis=1))

    def open_run():
        read_recipe(run)
        return read_slices(run), open_store(store)

    return rows.Row(f"opening a run of {amount} slices", open_run, seconds=1.0, rounds=5)


def make_import(directory: Path, amount: int) -> rows.Row:
    """A new process that imports kit."""
    return rows.Row(
        "`import kit`, new process",
        lambda: rows.run_python("import kit"),
        floor=lambda: rows.run_python("pass"),
        seconds=0.3,
        rounds=9,
    )


def make_help(directory: Path, amount: int) -> rows.Row:
    """A new process that prints the help."""
    return rows.Row(
        "`kit --help`, new process",
        lambda: rows.run_child(["-m", "kit", "--help"]),
        floor=lambda: rows.run_python("import argparse"),
        seconds=0.5,
        rounds=9,
    )


def write_store(directory: Path, amount: int) -> tuple[Path, pd.DataFrame]:
    """A store whose embeddings are a sparse file of zeros, and the table of its slices."""
    from kit.competition import LABELS
    from kit.embeddings import seal_store

    lengths = samples.draw_lengths(amount // 30 + 2)
    series = np.repeat(np.arange(len(lengths)), lengths)[:amount]
    names = np.array([f"series{number}" for number in range(len(lengths))], object)[series]
    table = pd.DataFrame({"SOPInstanceUID": samples.name_images(amount), "series": names})
    table[list(LABELS)] = 0
    store = directory / f"store{amount}"
    if not store.exists():
        store.mkdir()
        shape = (amount, rows.EMBEDDING)
        np.lib.format.open_memmap(store / "embeddings.npy", "w+", np.float16, shape).flush()
        seal_store(store, table["SOPInstanceUID"], {"weights_sha256": "", "failed": {}})
    return store, table


def open_store(path: Path):
    from kit.embeddings import EmbeddingStore

    return EmbeddingStore(path)
