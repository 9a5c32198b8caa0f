"""Predict a folder of scans with a trained run."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kit import InputError
from kit.embeddings import EmbeddingStore
from kit.ensemble import name_columns
from kit.files import hash_states
from kit.processes import restart_once
from kit.progress import format_count, log
from kit.recipes import Recipe
from kit.runs.calibration import apply_calibration
from kit.runs.directory import Run, list_members, read_recipe
from kit.runs.members import average_classifiers, bag_members, embed_members
from kit.runs.provenance import read_provenance
from kit.runs.scans import count_reasons, refuse_pooled, tabulate, write_manifest
from kit.runs.studies import summarize_studies
from kit.runs.tables import write_frame
from kit.runs.work import check_name, keep_work, leave_own, open_work
from kit.slices.index import index_files, list_files
from kit.slices.order import number_series
from kit.slices.series import choose_series, describe_series

_COLUMNS = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID",
            "InstanceNumber", "ImagePositionPatient", "series", "seq", "position", "path",
            "repaired"]  # fmt: skip


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
    by: str = "slice",
) -> pd.DataFrame:
    """Predict every CT slice in a folder or zip of DICOM files. Not a medical device.

    `model` is a run directory or what `load_model` returned. Returns one row per slice, in the
    order of the series: the slice's identity, `seq`, `position` (mm), `path`, `repaired`, a
    probability per label, and as `classifier_{label}` those of the classifiers alone; or, with `by`
    "series" or "study", one row per series or study. Its `attrs` hold `provenance` (where the
    weights come from), `skipped` (the files that were not used, with the reason) and `series`
    (what `kit.slices.series.describe_series` tells of each), as lists of dicts. With `out`, a name
    ending in .csv, the table is also written there, and the skipped files, the series and a
    manifest beside it, as `kit predict` does. With `skip_unreadable`, a folder below `scans` that
    cannot be listed is skipped too.

    Raises `RunError` where the run is not complete, `InputError` where there is no usable slice.
    """
    if not isinstance(model, TrainedModel):
        model = load_model(model)
    with tempfile.TemporaryDirectory(prefix="kit-predict") as folder:
        place = Path(folder) / "predictions.csv" if out is None else Path(out)
        with predict_scans(
            Path(scans), model, place, workers=workers, skip_unreadable=skip_unreadable, by=by
        ) as predictions:
            if out is not None:
                write_predictions(predictions, place, by)
    if len(predictions.skipped):
        reasons = count_reasons(predictions.skipped)
        log.warning("%s skipped: %s", format_count(len(predictions.skipped), "file"), reasons)
    return _add_attributes(predictions.tabulate(by), predictions)


def _add_attributes(table: pd.DataFrame, predictions: Predictions) -> pd.DataFrame:
    """Add what `predict` promises of the table's `attrs`: plain values, as pandas copies them."""
    table.attrs = {
        "provenance": read_provenance(predictions.model.run),
        "skipped": predictions.skipped[["path", "reason", "code"]].to_dict("records"),
        "series": predictions.described.to_dict("records"),
    }
    return table


@contextlib.contextmanager
def predict_scans(
    scans: Path,
    model: TrainedModel,
    out: Path,
    *,
    pseudonymize: bool = False,
    workers: int | None = None,
    skip_unreadable: bool = False,
    by: str = "slice",
) -> Iterator[Predictions]:
    """Predict every CT slice in a folder or zip by all members of a run; write them in the block.

    Embeddings are kept in a hidden folder beside `out` until the block has ended without an error:
    after an interruption, the same call on the same files continues from them. With `pseudonymize`,
    PatientIDs become running numbers, and descriptions are left out. With `by="study"` only the
    series of each study that `choose_series` takes is predicted. Raises `InputError` where there is
    no usable slice or `out` is not a CSV, `RunError` where another process is at work for `out`.
    """
    started = time.monotonic()
    check_name(out)
    closed: list[OSError] | None = [] if skip_unreadable else None
    paths = leave_own(list_files(scans, closed), scans, out)
    slices, skipped = restart_once(index_files)(paths, str(scans), workers, closed=closed)
    refuse_empty(scans, slices, skipped)
    if pseudonymize:
        slices, skipped = _pseudonymize(slices, skipped)
    described = describe_series(slices, skipped)
    slices = _select_chosen(slices, described) if by == "study" else slices
    names = _make_ids_unique(slices)
    slices["repaired"] &= model.recipe.classifier.repair
    with keep_work(out) as work:
        open_work(work, {"files": hash_states(slices["path"])})
        stores = embed_members(slices, model.members, work, workers)
        probabilities, series = bag_members(slices, model.members, stores)
        skipped = pd.concat([skipped, list_failed(slices, stores[0])[skipped.columns]])
        table = slices[_COLUMNS].join(probabilities, on="SOPInstanceUID", how="inner")
        table[name_columns("classifier")] = average_classifiers(stores, table["SOPInstanceUID"])
        table["SOPInstanceUID"] = names[table.index]
        yield Predictions(table, series, described, skipped, model, time.monotonic() - started)


def _select_chosen(slices: pd.DataFrame, described: pd.DataFrame) -> pd.DataFrame:
    chosen = slices["series"].isin(choose_series(described)["series"])
    return slices[chosen].reset_index(drop=True)


def _pseudonymize(slices: pd.DataFrame, skipped: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables with running numbers for PatientIDs, and without what somebody typed."""
    patients = pd.concat([slices["PatientID"], skipped["PatientID"]], ignore_index=True)
    numbered = pd.Series([f"patient{n + 1}" for n in pd.factorize(patients)[0]], dtype=object)
    parts = []
    for table, own in ((slices, numbered[: len(slices)]), (skipped, numbered[len(slices) :])):
        table = table.assign(PatientID=own.to_numpy(), SeriesDescription=None)
        numbers, names = number_series(table)
        renamed = pd.Series(names[numbers].to_numpy(object), table.index, dtype=object)
        parts.append(table.assign(series=renamed.where(table["series"].notna(), None)))
    return parts[0], parts[1]


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
    `threshold`) instead of one per slice, with `by="study"` one per study (see
    `studies.summarize_studies`). `*.series.csv` has the table of all series. With `calibrated` the
    run's temperatures for that unit are applied to the six probabilities, and a column `calibrated`
    says so.
    """
    table, skipped, model = predictions.table, predictions.skipped, predictions.model
    rows = predictions.tabulate(by, threshold, calibrated)
    write_frame(out.with_name(f"{out.stem}.skipped.csv"), skipped[["path", "reason", "code"]])
    described = predictions.described.drop(columns="series")
    write_frame(out.with_name(f"{out.stem}.series.csv"), described)
    write_frame(out, rows)
    manifest, seconds = out.with_suffix(".json"), predictions.seconds
    write_manifest(manifest, model.run, model.members, table, skipped, seconds, calibrated)


def refuse_empty(source: Path, slices: pd.DataFrame, skipped: pd.DataFrame) -> None:
    if slices.empty:
        reasons = skipped["code"].value_counts()
        raise InputError(
            f"{source}: no usable CT slice among {format_count(len(skipped), 'file')}; most often: "
            f"{reasons.index[0]} ({reasons.iloc[0]})"
        )


def list_failed(slices: pd.DataFrame, store: EmbeddingStore) -> pd.DataFrame:
    """Select the slices whose pixels gave no image, with `reason` and `code`."""
    failed = slices[slices["SOPInstanceUID"].isin(store.failed)]
    names = failed["SOPInstanceUID"]
    return failed.assign(reason=names.map(store.failed), code=names.map(store.codes))
