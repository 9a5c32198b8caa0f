"""A trained run applied: to one's own scans, and to the competition's test part."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from kit import ensemble
from kit.competition import LABELS
from kit.embeddings import EmbeddingStore, extract_embeddings, make_series
from kit.files import read_json, split_archive, write_json
from kit.lstm import load_lstm, predict_logits
from kit.processes import choose_workers, restart_once
from kit.progress import track
from kit.report.scans_page import write_scan_report
from kit.runs.directory import (
    Run,
    RunError,
    list_members,
    lock_folder,
    read_recipe,
    write_frame,
)
from kit.runs.scans import summarize_series, write_manifest
from kit.runs.scoring import list_places
from kit.slices.competition_files import find_competition
from kit.slices.index import index_files, index_slices
from kit.slices.order import number_series
from kit.submission import fill_missing, read_sample, write_submission
from kit.training.distributed import choose_device, rank, wait_for_all

_SOURCE = "source.json"  # in the folder of what is done: of which files

_COLUMNS = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID",
            "ImagePositionPatient", "series", "seq", "position", "path", "repaired"]  # fmt: skip


def predict_folder(
    folder: Path,
    run: Run,
    out: Path,
    *,
    by: str = "slice",
    threshold: float = 0.5,
    page: bool = False,
    pseudonymize: bool = False,
    workers: int | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predict every CT slice below a folder, or in a zip, by all members of a run.

    Writes the CSV `out`, a row a slice in series order, or with `by="series"` a row a series (see
    `scans.summarize_series`, of which `threshold` is). Beside it: `*.skipped.csv`, the manifest
    `*.json` and with `page` the page `*.html`. With `pseudonymize` running numbers stand for the
    PatientIDs. Returns the slices' table, where `repaired` says that a wrong rescale intercept was
    put right, and the skipped files. Embeddings are kept in a hidden folder beside `out` until all
    is written: a call that was broken off goes on from them when it is made again on these files.

    Raises `RunError` where the run is not complete, `ValueError` where the folder holds no usable
    slice.
    """
    started = time.monotonic()
    if not 0 <= threshold <= 1:
        raise ValueError(f"the threshold {threshold:g} is no probability")
    if out.suffix != ".csv":
        raise ValueError(f"{out}: the table's name must end in .csv; the rest is written beside it")
    recipe = read_recipe(run)
    members = list_members(run, recipe)
    slices, skipped = restart_once(index_slices)(folder, workers)
    _refuse_empty(folder, slices, skipped)
    if pseudonymize:
        slices["PatientID"] = [f"patient{n + 1}" for n in pd.factorize(slices["PatientID"])[0]]
        numbers, names = number_series(slices)
        slices["series"] = names[numbers]
    slices["repaired"] &= recipe.classifier.repair
    with _hold_work(out) as work:
        _open_work(work, {"files": _fingerprint(slices["path"])})
        stores = _embed_by_members(slices, members, work, workers)
        probabilities = _bag_members(slices, members, stores)
        skipped = pd.concat([skipped, _list_failed(slices, stores[0])[skipped.columns]])
        table = slices[_COLUMNS].join(probabilities, on="SOPInstanceUID", how="inner")
        write_frame(out.with_name(out.stem + ".skipped.csv"), skipped[["path", "reason", "code"]])
        rows = table.drop(columns=["series", "ImagePositionPatient"])
        write_frame(out, summarize_series(table, threshold) if by == "series" else rows)
        seconds = time.monotonic() - started
        write_manifest(out.with_suffix(".json"), run, members, table, skipped, seconds)
        if page:  # last: whatever happens to it, the predictions are there
            weights = list(members)[-1]
            write_scan_report(table, out.with_suffix(".html"), weights, skipped, threshold)
        _remove_work(work)
    return table, skipped


def predict_competition(
    data: Path, run: Run, out: Path, prior: np.ndarray, *, workers: int | None = None
) -> None:
    """Predict the competition's test part by all members of a run; write the submission `out`.

    Images of which nothing is known get `prior` (6,). Beside `out`: `*.parquet`, the slice table
    with the probabilities, `*.skipped.csv` and `*.filled.csv`. Under `torchrun` each process
    embeds its part. A second call goes on. Raises `FileNotFoundError` where the test part or the
    sample submission is missing, else as `predict_folder`; `out` then stays as it was.
    """
    members = list_members(run, read_recipe(run))
    files = find_competition(data, train=False)
    if not files.test or files.sample is None:
        raise FileNotFoundError(f"{data}: the test part or its sample submission is missing")
    rest = out.with_name(f"{out.stem}.skipped.csv")
    source = {"files": hashlib.sha256("\n".join(files.test).encode()).hexdigest()}
    with _hold_work(out) as work:
        table = work / "slices.parquet"
        if rank() == 0 and not (_open_work(work, source) and table.exists()):
            slices, skipped = restart_once(index_files)(files.test, str(data), workers)
            _refuse_empty(data, slices, skipped)
            write_frame(rest, skipped)
            write_frame(table, slices)
        wait_for_all()
        slices = pd.read_parquet(table)
        stores = _embed_by_members(slices, members, work, workers)
        if rank() == 0:
            note_unreadable(rest, slices, stores[0])
            probabilities = _bag_members(slices, members, stores)
            _write_competition(out, slices, probabilities, files.sample, prior)
            _remove_work(work)
    wait_for_all()


def _write_competition(
    out: Path, slices: pd.DataFrame, probabilities: pd.DataFrame, sample: str, prior: np.ndarray
) -> None:
    """The submission `out` of all the sample's images, and the lists beside it."""
    images = read_sample(sample)
    if not images.isin(probabilities.index).any():
        raise ValueError(f"{sample}: none of its images is among the predicted slices")
    rest = out.with_name(f"{out.stem}.skipped.csv")
    skipped = pd.read_csv(rest, dtype={"SOPInstanceUID": str, "series": str})
    places = list_places(slices, skipped)
    complete, filled = fill_missing(probabilities, images, places, prior)
    write_frame(out.with_suffix(".parquet"), slices.join(probabilities, on="SOPInstanceUID"))
    write_frame(out.with_name(f"{out.stem}.filled.csv"), filled)
    write_submission(complete, out, sample)


@contextlib.contextmanager
def _hold_work(out: Path) -> Iterator[Path]:
    """The hidden folder beside `out` with what is done of it, for this process alone.

    Raises `RunError` where another process is at work for `out`, or the folder is somebody else's.
    """
    work = out.with_name(f".{out.stem}.kit-work")
    if rank() != 0:
        yield work
        return
    found = {path.name for path in work.iterdir()} if work.is_dir() else set()
    if found - {".lock", f"{_SOURCE}.part"} and _SOURCE not in found:
        raise RunError(f"{work}: not a folder of kit predict; move it away, or name another output")
    work.mkdir(parents=True, exist_ok=True)
    with lock_folder(work):
        yield work


def _open_work(work: Path, source: dict) -> bool:
    """Whether `work` was left by an earlier call on the same `source`; else it is emptied."""
    note = work / _SOURCE
    if note.exists() and read_json(note) == source:
        return True
    _empty_work(work)
    write_json(note, source)
    return False


def _empty_work(work: Path) -> None:
    """Remove all but the lock and the note by which the folder is known: this may be broken off."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (".lock", _SOURCE):
            path.unlink()


def _remove_work(work: Path) -> None:
    _empty_work(work)
    shutil.rmtree(work)


def _fingerprint(paths: pd.Series) -> str:
    """A hash of the files' names, sizes and times; of a zip's members, of those of the zip."""
    digest = hashlib.sha256()
    for path in paths:
        found = os.stat(split_archive(path)[0] or path)
        digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _refuse_empty(source: Path, slices: pd.DataFrame, skipped: pd.DataFrame) -> None:
    if slices.empty:
        reasons = skipped["code"].value_counts()
        raise ValueError(
            f"{source}: no usable CT slice among {len(skipped)} files; most often: "
            f"{reasons.index[0]} ({reasons.iloc[0]})"
        )


def _embed_by_members(slices, members: dict, directory: Path, workers: int | None) -> list:
    """The embeddings of `slices` by each classifier of `members`, in stores below `directory`."""
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


def _bag_members(slices: pd.DataFrame, members: dict, stores: list) -> pd.DataFrame:
    """The mean prediction of all LSTMs of `members`, each on its classifier's embeddings."""
    pairs = [
        (store, lstm)
        for store, lstms in zip(stores, members.values(), strict=True)
        for lstm in lstms
    ]
    return ensemble.bag(
        predict_slices(store, slices, lstm) for store, lstm in track(pairs, "LSTMs", unit="models")
    )


def predict_slices(store: EmbeddingStore, table: pd.DataFrame, weights: Path) -> pd.DataFrame:
    """Probabilities by one LSTM of the slices that have an embedding, by SOPInstanceUID.

    In float32, as its logits are.
    """
    model = load_lstm(weights).to(choose_device())
    logits = predict_logits(model, make_series(store, table), choose_device()).astype(np.float64)
    index = pd.Index(table["SOPInstanceUID"], name="SOPInstanceUID")
    probabilities = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return pd.DataFrame(probabilities, index=index, columns=list(LABELS)).dropna()


def note_unreadable(path: Path, slices: pd.DataFrame, store: EmbeddingStore) -> None:
    """Add the slices whose pixels gave no image to the list of skipped files in `path`."""
    skipped = pd.read_csv(path, dtype=str)
    failed = _list_failed(slices, store)
    failed = failed[~failed["path"].isin(skipped["path"])]
    if len(failed):
        write_frame(path, pd.concat([skipped, failed[skipped.columns]]))


def _list_failed(slices: pd.DataFrame, store: EmbeddingStore) -> pd.DataFrame:
    """The slices whose pixels gave no image, with `reason` and `code`."""
    failed = slices[slices["SOPInstanceUID"].isin(store.failed)]
    names = failed["SOPInstanceUID"]
    return failed.assign(reason=names.map(store.failed), code=names.map(store.codes))
