"""Predict a folder of scans with a trained run."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit import InputError
from kit.embeddings import EmbeddingStore
from kit.ensemble import name_columns
from kit.files import hash_states, write_briefly
from kit.progress import format_count, log
from kit.recipes import Recipe
from kit.runs.calibration import apply_calibration
from kit.runs.directory import Run, list_members, read_recipe
from kit.runs.gathering import Gathered, Scans, gather_array, gather_files, make_ids_unique
from kit.runs.members import Loaded, average_classifiers, bag_members, embed_members
from kit.runs.provenance import present_provenance, read_provenance
from kit.runs.scans import (
    VIEW_COLUMNS,
    count_reasons,
    refuse_pooled,
    tabulate,
    write_manifest,
)
from kit.runs.scoring import read_shares
from kit.runs.studies import summarize_studies
from kit.runs.tables import write_guarded
from kit.runs.work import check_name, keep_work, open_work
from kit.slices.series import choose_series
from kit.slices.slabs import average_thin

_UNITS = ("slice", "series", "study")
_COLUMNS = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID",
            "InstanceNumber", *VIEW_COLUMNS, "series", "seq", "position", "path",
            "repaired", "averaged", "source"]  # fmt: skip


@dataclass(frozen=True)
class TrainedModel:
    """A complete run, ready to predict.

    `members` maps the weights of each classifier to those of the LSTMs trained on its embeddings.
    `shares` (6,) are the LSTMs' where they are mixed with the classifiers, else None.
    """

    run: Run
    recipe: Recipe
    members: dict[Path, list[Path]]
    shares: np.ndarray | None = None

    @cached_property
    def loaded(self) -> Loaded:
        """The weights in memory, for as many calls as there are."""
        return Loaded(self.members)

    def predict(
        self,
        scans: Scans | np.ndarray,
        out: str | Path | None = None,
        *,
        positions: Sequence[float] | None = None,
        by: str = "slice",
        slab: float | None = None,
        workers: int | None = None,
        skip_unreadable: bool = False,
        overwrite: bool = False,
    ) -> pd.DataFrame:
        """Predict every CT slice in a folder, zip or file, in a list of these, or in an array.

        An array holds HU, (slices, rows, columns); `positions` are mm (see `gather_array`). Returns
        one row per slice, in the order of the series: its identity, `seq`, `position` (mm), `path`,
        `repaired`, `averaged` (of how many slices it is the mean, see `average_thin`), a
        probability per label, and as `classifier_{label}` those of the classifiers alone; or, with
        `by` "series" or "study", one row for each. Its `attrs` hold `provenance`, `skipped` (files
        that were not used, and why) and `series` (see `describe_series`).

        With `out`, a name ending in .csv, the table is written there, and the skipped files, the
        series and a manifest beside it, as `kit predict` does. With `skip_unreadable`, a folder
        that cannot be listed is skipped too. Raises `RunError` where the run is not complete,
        `InputError` where there is no usable slice, or a file exists and is not to be overwritten.
        """
        _check_unit(by)
        place = None if out is None else Path(out)
        if place is not None:
            check_name(place, overwrite)
        if isinstance(scans, np.ndarray):
            gathered = gather_array(scans, positions)
        elif positions is not None:
            raise InputError("positions are those of an array's slices; files have their own")
        else:
            gathered = gather_files(scans, place, False, workers, skip_unreadable)
        with predict_gathered(gathered, self, place, workers, by, slab, overwrite) as found:
            if place is not None:
                write_predictions(found, place, by)
        return _finish_table(found.tabulate(by), found)

    def __repr__(self) -> str:
        lstms = sum(map(len, self.members.values()))
        models = f"{format_count(len(self.members), 'classifier')}, {format_count(lstms, 'LSTM')}"
        return f"<TrainedModel {self.run}: recipe {self.recipe.name}, {models}>"

    def _repr_html_(self) -> str:
        """What Jupyter shows of it: where its weights come from, the warning first."""
        return present_provenance(read_provenance(self.run))


@dataclass(frozen=True)
class Predictions:
    """The predicted slices of a folder, the files that were skipped, and what predicted them.

    `table` has one row per slice, in the order of the series, with the six probabilities and, as
    `classifier_{label}`, those of the classifiers alone; `repaired` says that a wrong rescale
    intercept was corrected. `series` has the probabilities by series of a model that pools a series
    by itself, otherwise it is None. `described` is what `slices.series.describe_series` tells of
    all series, those that were not predicted too.
    """

    table: pd.DataFrame
    series: pd.DataFrame | None
    described: pd.DataFrame
    skipped: pd.DataFrame
    model: TrainedModel
    seconds: float

    def tabulate(
        self, by: str = "slice", threshold: float = 0.5, calibrated: bool = False
    ) -> pd.DataFrame:
        """Arrange the predictions as they are written: a row a slice, a series or a study.

        `threshold` and `calibrated` as `write_predictions` has them.
        """
        run = self.model.run if calibrated else None
        if by != "study":
            return tabulate(self.table, by, threshold, self.series, run)
        summary = summarize_studies(self.table, self.described, self.series)
        if run is None:
            return summary
        refuse_pooled(self.series)
        return apply_calibration(summary, run, "study").assign(calibrated=True)


def load_model(path: str | Path) -> TrainedModel:
    """Open a run directory, or an export of one, for prediction.

    Reads its configuration and checks that all weights are there; they are loaded when they are
    first needed, and then stay. Raises `RunError` where one is missing.
    """
    run = Run(Path(path))
    recipe = read_recipe(run)
    return TrainedModel(run, recipe, list_members(run, recipe), read_shares(run))


def predict(
    scans: Scans | np.ndarray,
    model: str | Path | TrainedModel,
    out: str | Path | None = None,
    by: str = "slice",
    **options: Any,
) -> pd.DataFrame:
    """Predict every CT slice in a folder or zip of DICOM files, or in an array in HU.

    `model` is a run directory or what `load_model` returned, which stays loaded for the next call.
    `by` is "slice", "series" or "study"; `options` are `positions`, `slab`, `workers`,
    `skip_unreadable` and `overwrite`; for all of these and the table that is returned see
    `TrainedModel.predict`. Not a medical device.
    """
    model = model if isinstance(model, TrainedModel) else load_model(model)
    return model.predict(scans, out, by=by, **options)


def _check_unit(by: str) -> None:
    if by not in _UNITS:
        raise InputError(f"a table by {by!r} is not known: it is by {', '.join(_UNITS)}")


def _finish_table(table: pd.DataFrame, predictions: Predictions) -> pd.DataFrame:
    """Add what `predict` promises of `attrs`, plain values as pandas copies them; log the rest."""
    if len(predictions.skipped):
        reasons = count_reasons(predictions.skipped).items()
        listed = "; ".join(f"{reason} ({count})" for reason, count in reasons)
        log.warning("%s skipped: %s", format_count(len(predictions.skipped), "file"), listed)
    table.attrs = {
        "provenance": read_provenance(predictions.model.run),
        "skipped": predictions.skipped[["path", "reason", "code"]].to_dict("records"),
        "series": predictions.described.to_dict("records"),
    }
    return table


@contextlib.contextmanager
def predict_gathered(
    gathered: Gathered,
    model: TrainedModel,
    out: Path | None = None,
    workers: int | None = None,
    by: str = "slice",
    slab: float | None = None,
    overwrite: bool = True,
) -> Iterator[Predictions]:
    """Predict the slices that were gathered by all members of a run; write them in the block.

    Embeddings are kept in a hidden folder beside `out` until the block has ended without an error:
    after an interruption, the same call on the same files continues from them. `by`, `slab` and
    `overwrite` are those of `TrainedModel.predict`. Raises `InputError` where `out` is not a CSV or
    is not to be overwritten, `RunError` where another process is at work for `out`.
    """
    slices, described, skipped, started = gathered
    if by == "study":
        slices = slices[slices["series"].isin(choose_series(described)["series"])]
    slices = average_thin(slices.reset_index(drop=True), described, slab)
    names = make_ids_unique(slices)
    slices["repaired"] &= model.recipe.classifier.repair
    with _open_work(out, gathered, {"by": by, "slab": slab}, overwrite) as work:
        stores = embed_members(slices, model.members, work, workers, loaded=model.loaded)
        probabilities, series = bag_members(
            slices, model.members, stores, model.loaded, model.shares
        )
        skipped = pd.concat([skipped, list_failed(slices, stores[0])[skipped.columns]])
        table = slices[[name for name in _COLUMNS if name in slices]]
        table = table.join(probabilities, on="SOPInstanceUID", how="inner")
        table[name_columns("classifier")] = average_classifiers(stores, table["SOPInstanceUID"])
        table["SOPInstanceUID"] = names[table.index]
        yield Predictions(table, series, described, skipped, model, time.monotonic() - started)


@contextlib.contextmanager
def _open_work(
    out: Path | None, gathered: Gathered, options: dict, overwrite: bool
) -> Iterator[Path]:
    """Yield a folder for unfinished work: beside `out`, or else one that is removed in any case."""
    if out is None or "source" in gathered.slices:
        with tempfile.TemporaryDirectory(prefix="kit-predict") as folder, write_briefly():
            yield Path(folder)
        return
    check_name(out)
    files = hash_states(gathered.slices["path"])
    with keep_work(out) as work:
        open_work(work, {"files": files, **options}, None if overwrite else out)
        yield work


def write_predictions(
    predictions: Predictions,
    out: Path,
    by: str = "slice",
    threshold: float = 0.5,
    calibrated: bool = False,
) -> None:
    """Write the CSV `out`, and beside it the skipped files `*.skipped.csv` and the manifest.

    With `by="series"` the CSV has one row per series (see `scans.summarize_series`, which takes
    `threshold`) instead of one per slice, with `by="study"` one per study (see
    `studies.summarize_studies`). `*.series.csv` has the table of all series. With `calibrated` the
    run's temperatures for that unit are applied to the six probabilities, and a column `calibrated`
    says so.
    """
    table, skipped, model = predictions.table, predictions.skipped, predictions.model
    rows = predictions.tabulate(by, threshold, calibrated)
    write_guarded(out.with_name(f"{out.stem}.skipped.csv"), skipped[["path", "reason", "code"]])
    described = predictions.described.drop(columns="series")
    write_guarded(out.with_name(f"{out.stem}.series.csv"), described)
    write_guarded(out, rows)
    manifest, seconds = out.with_suffix(".json"), predictions.seconds
    write_manifest(manifest, model.run, model.members, table, skipped, seconds, calibrated)


def list_failed(slices: pd.DataFrame, store: EmbeddingStore) -> pd.DataFrame:
    """Select the slices whose pixels gave no image, with `reason` and `code`."""
    failed = slices[slices["SOPInstanceUID"].isin(store.failed)]
    names = failed["SOPInstanceUID"]
    return failed.assign(reason=names.map(store.failed), code=names.map(store.codes))
