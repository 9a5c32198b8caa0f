"""Predict with a trained run: a folder of scans, or the competition's test part."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kit import InputError
from kit.embeddings import EmbeddingStore
from kit.ensemble import name_columns
from kit.files import hash_states
from kit.processes import restart_once
from kit.progress import format_count, log
from kit.recipes import Recipe
from kit.runs.directory import Run, list_members, read_recipe
from kit.runs.members import average_classifiers, bag_members, embed_members
from kit.runs.scans import count_reasons, tabulate, write_manifest
from kit.runs.scoring import list_places
from kit.runs.tables import read_placed, read_skipped, write_frame
from kit.runs.work import check_name, keep_work, leave_own, open_work
from kit.slices.competition_files import find_competition
from kit.slices.index import index_files, list_files
from kit.slices.order import number_series
from kit.submission import fill_missing, read_sample, write_submission
from kit.training.distributed import rank, wait_for_all

_COLUMNS = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID",
            "ImagePositionPatient", "series", "seq", "position", "path", "repaired"]  # fmt: skip


@dataclass(frozen=True)
class TrainedModel:
    """A complete run, ready to predict.

    `members` maps the weights of each classifier to those of the LSTMs trained on its embeddings.
    """

    run: Run
    recipe: Recipe
    members: dict[Path, list[Path]]

    def __repr__(self) -> str:
        lstms = sum(map(len, self.members.values()))
        models = f"{format_count(len(self.members), 'classifier')}, {format_count(lstms, 'LSTM')}"
        return f"<TrainedModel {self.run}: recipe {self.recipe.name}, {models}>"


@dataclass(frozen=True)
class Predictions:
    """The predicted slices of a folder, the files that were skipped, and what predicted them.

    `table` has one row per slice, in the order of the series, with the six probabilities and, as
    `classifier_{label}`, those of the classifiers alone; `repaired` says that a wrong rescale
    intercept was corrected. `series` has the probabilities by series of a model that pools a series
    by itself, otherwise it is None.
    """

    table: pd.DataFrame
    series: pd.DataFrame | None
    skipped: pd.DataFrame
    model: TrainedModel
    seconds: float

    @property
    def slices(self) -> pd.DataFrame:
        """The columns of `table` that are written to the CSV."""
        return tabulate(self.table)


def load_model(path: str | Path) -> TrainedModel:
    """Open a run directory, or an export of one, for prediction.

    Reads its configuration and checks that all weights are there. Raises `RunError` otherwise.
    """
    run = Run(Path(path))
    recipe = read_recipe(run)
    return TrainedModel(run, recipe, list_members(run, recipe))


def predict(
    scans: str | Path,
    model: str | Path | TrainedModel,
    out: str | Path | None = None,
    *,
    workers: int | None = None,
    skip_unreadable: bool = False,
) -> pd.DataFrame:
    """Predict every CT slice in a folder or zip of DICOM files. Not a medical device.

    `model` is a run directory or what `load_model` returned. Returns one row per slice, in the
    order of the series: the slice's identity, `seq`, `position` (mm), `path`, `repaired`, a
    probability per label, and as `classifier_{label}` those of the classifiers alone. With `out`,
    a name ending in .csv, the table is also written there, and the skipped files and a manifest
    beside it, as `kit predict` does. With `skip_unreadable`, a folder below `scans` that cannot be
    listed is skipped too.

    Raises `RunError` where the run is not complete, `InputError` where there is no usable slice.
    """
    if not isinstance(model, TrainedModel):
        model = load_model(model)
    with tempfile.TemporaryDirectory(prefix="kit-predict") as folder:
        place = Path(folder) / "predictions.csv" if out is None else Path(out)
        with predict_scans(
            Path(scans), model, place, workers=workers, skip_unreadable=skip_unreadable
        ) as predictions:
            if out is not None:
                write_predictions(predictions, place)
    if len(predictions.skipped):
        reasons = count_reasons(predictions.skipped)
        log.warning("%s skipped: %s", format_count(len(predictions.skipped), "file"), reasons)
    return predictions.slices


@contextlib.contextmanager
def predict_scans(
    scans: Path,
    model: TrainedModel,
    out: Path,
    *,
    pseudonymize: bool = False,
    workers: int | None = None,
    skip_unreadable: bool = False,
) -> Iterator[Predictions]:
    """Predict every CT slice in a folder or zip by all members of a run; write them in the block.

    Embeddings are kept in a hidden folder beside `out` until the block has ended without an error:
    after an interruption, the same call on the same files continues from them. With
    `pseudonymize`, PatientIDs are replaced by running numbers.

    Raises `InputError` where there is no usable slice or `out` is not a CSV, `RunError` where
    another process is at work for `out`.
    """
    started = time.monotonic()
    check_name(out)
    closed: list[OSError] | None = [] if skip_unreadable else None
    paths = leave_own(list_files(scans, closed), scans, out)
    slices, skipped = restart_once(index_files)(paths, str(scans), workers, closed=closed)
    _refuse_empty(scans, slices, skipped)
    if pseudonymize:
        slices["PatientID"] = [f"patient{n + 1}" for n in pd.factorize(slices["PatientID"])[0]]
        numbers, names = number_series(slices)
        slices["series"] = names[numbers]
    names = _make_ids_unique(slices)
    slices["repaired"] &= model.recipe.classifier.repair
    with keep_work(out) as work:
        open_work(work, {"files": hash_states(slices["path"])})
        stores = embed_members(slices, model.members, work, workers)
        probabilities, series = bag_members(slices, model.members, stores)
        skipped = pd.concat([skipped, _list_failed(slices, stores[0])[skipped.columns]])
        table = slices[_COLUMNS].join(probabilities, on="SOPInstanceUID", how="inner")
        table[name_columns("classifier")] = average_classifiers(stores, table["SOPInstanceUID"])
        table["SOPInstanceUID"] = names[table.index]
        yield Predictions(table, series, skipped, model, time.monotonic() - started)


def _make_ids_unique(slices: pd.DataFrame) -> pd.Series:
    """Have slices of one SOPInstanceUID bear their series too; return what they were called.

    Anonymizers restart the UIDs with each patient, and embeddings and predictions go by them.
    """
    names = slices["SOPInstanceUID"].copy()
    again = names.duplicated(keep=False)
    slices.loc[again, "SOPInstanceUID"] = slices["series"][again] + "/" + names[again]
    return names


def write_predictions(
    predictions: Predictions,
    out: Path,
    by: str = "slice",
    threshold: float = 0.5,
    calibrated: bool = False,
) -> None:
    """Write the CSV `out`, and beside it the skipped files `*.skipped.csv` and the manifest.

    With `by="series"` the CSV has one row per series (see `scans.summarize_series`, which takes
    `threshold`) instead of one per slice. With `calibrated` the run's temperatures for that unit
    are applied to the six probabilities, and a column `calibrated` says so.
    """
    table, skipped, model = predictions.table, predictions.skipped, predictions.model
    rows = tabulate(table, by, threshold, predictions.series, model.run if calibrated else None)
    write_frame(out.with_name(f"{out.stem}.skipped.csv"), skipped[["path", "reason", "code"]])
    write_frame(out, rows)
    manifest, seconds = out.with_suffix(".json"), predictions.seconds
    write_manifest(manifest, model.run, model.members, table, skipped, seconds, calibrated)


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
    otherwise as `predict_scans`; an earlier `out` then stays as it was.
    """
    members = load_model(run.path).members
    files = find_competition(data, train=False)
    if not files.test or files.sample is None:
        raise FileNotFoundError(f"{data}: the test part or its sample submission is missing")
    rest = out.with_name(f"{out.stem}.skipped.csv")
    source = {"files": hashlib.sha256("\n".join(files.test).encode()).hexdigest()}
    with keep_work(out) as work:
        table = work / "slices.parquet"
        if rank() == 0 and not (open_work(work, source) and table.exists()):
            slices, skipped = restart_once(index_files)(files.test, str(data), workers, unique=True)
            _refuse_empty(data, slices, skipped)
            write_frame(work / "skipped.csv", skipped)
            write_frame(table, slices)
        wait_for_all()
        slices = read_placed(table)
        stores = embed_members(slices, members, work, workers, deadline)
        if rank() == 0:
            shutil.copyfile(work / "skipped.csv", rest)
            note_unreadable(rest, slices, stores[0])
            probabilities, _ = bag_members(slices, members, stores)
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


def _refuse_empty(source: Path, slices: pd.DataFrame, skipped: pd.DataFrame) -> None:
    if slices.empty:
        reasons = skipped["code"].value_counts()
        raise InputError(
            f"{source}: no usable CT slice among {format_count(len(skipped), 'file')}; most often: "
            f"{reasons.index[0]} ({reasons.iloc[0]})"
        )


def note_unreadable(path: Path, slices: pd.DataFrame, store: EmbeddingStore) -> None:
    """Add the slices whose pixels gave no image to the skipped files in `path`."""
    skipped = read_skipped(path)
    failed = _list_failed(slices, store)
    failed = failed[~failed["path"].isin(skipped["path"])]
    if len(failed):
        write_frame(path, pd.concat([skipped, failed[skipped.columns]]))


def _list_failed(slices: pd.DataFrame, store: EmbeddingStore) -> pd.DataFrame:
    """Select the slices whose pixels gave no image, with `reason` and `code`."""
    failed = slices[slices["SOPInstanceUID"].isin(store.failed)]
    names = failed["SOPInstanceUID"]
    return failed.assign(reason=names.map(store.failed), code=names.map(store.codes))
