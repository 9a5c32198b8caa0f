"""The competition's test part, predicted by a trained run: the submission and what it left out."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from kit import InputError
from kit.embeddings import EmbeddingStore
from kit.processes import restart_once
from kit.runs.directory import Run
from kit.runs.gathering import refuse_empty
from kit.runs.members import bag_members, embed_members
from kit.runs.prediction import list_failed, load_model
from kit.runs.scoring import list_places
from kit.runs.tables import read_placed, read_skipped, write_frame
from kit.runs.work import keep_work, open_work
from kit.slices.competition_files import find_competition
from kit.slices.index import index_files
from kit.submission import fill_missing, read_sample, write_submission
from kit.training.distributed import rank, wait_for_all


def predict_competition(
    data: Path,
    run: Run,
    out: Path,
    prior: np.ndarray,
    *,
    workers: int | None = None,
    deadline: float | None = None,
) -> None:
    """Predict the competition's test part by all members of a run; write the submission `out`.

    Images of which nothing is known get `prior` (6,). Beside `out`: `*.parquet`, the slice table
    with the probabilities, `*.skipped.csv` and `*.filled.csv`. Under `torchrun` each process
    embeds its part. A second call continues the first. Raises `FileNotFoundError` where the test
    part or the sample submission is missing, `OutOfTime` past `time.monotonic`'s `deadline`, and
    otherwise as `predict_gathered`; an earlier `out` then stays as it was.
    """
    model = load_model(run.path)
    members = model.members
    files = find_competition(data, train=False)
    if not files.test or files.sample is None:
        raise FileNotFoundError(f"{data}: the test part or its sample submission is missing")
    rest = out.with_name(f"{out.stem}.skipped.csv")
    source = {"files": hashlib.sha256("\n".join(files.test).encode()).hexdigest()}
    with keep_work(out) as work:
        table = work / "slices.parquet"
        if rank() == 0 and not (open_work(work, source) and table.exists()):
            slices, skipped = restart_once(index_files)(files.test, str(data), workers, unique=True)
            refuse_empty(data, slices, skipped)
            write_frame(work / "skipped.csv", skipped)
            write_frame(table, slices)
        wait_for_all()
        slices = read_placed(table)
        stores = embed_members(slices, members, work, workers, deadline)
        if rank() == 0:
            shutil.copyfile(work / "skipped.csv", rest)
            note_unreadable(rest, slices, stores[0])
            probabilities, _ = bag_members(slices, members, stores, shares=model.shares)
            _write_competition(out, slices, probabilities, files.sample, prior)
    wait_for_all()


def _write_competition(
    out: Path, slices: pd.DataFrame, probabilities: pd.DataFrame, sample: str, prior: np.ndarray
) -> None:
    """Write the submission `out` of all the sample's images, and the tables beside it."""
    images = read_sample(sample)
    if not images.isin(probabilities.index).any():
        raise InputError(f"{sample}: none of its images is among the predicted slices")
    places = list_places(slices, read_skipped(out.with_name(f"{out.stem}.skipped.csv")))
    complete, filled = fill_missing(probabilities, images, places, prior)
    write_frame(out.with_suffix(".parquet"), slices.join(probabilities, on="SOPInstanceUID"))
    write_frame(out.with_name(f"{out.stem}.filled.csv"), filled)
    write_submission(complete, out, sample)


def note_unreadable(path: Path, slices: pd.DataFrame, store: EmbeddingStore) -> None:
    """Add the slices whose pixels gave no image to the skipped files in `path`."""
    skipped = read_skipped(path)
    failed = list_failed(slices, store)
    failed = failed[~failed["path"].isin(skipped["path"])]
    if len(failed):
        write_frame(path, pd.concat([skipped, failed[skipped.columns]]))
