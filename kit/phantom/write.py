"""A synthetic competition in Kaggle's layout: heads, their bleedings, and the quirks of real files.

Neither anatomy for teaching nor a medical device: simple surfaces in millimetres, made so that the
pipeline meets everything that it must survive, and so that neighbouring slices carry information.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from kit import InputError, progress
from kit.competition import LABELS, to_submission
from kit.files import name_errors
from kit.phantom.plan import Encoding, Patient, plan_patients
from kit.phantom.scan import Series, render_patient
from kit.processes import restart_once

_PARTS = ("stage_2_train", "stage_2_test")
# A run on these data is marked by it: its weights have only seen synthetic heads.
PHANTOM_MARK = "PHANTOM.txt"
_MARK = "Synthetic heads, drawn by kit phantom: no patient's, and no use for any.\n"

_PADDING = -2000  # stored value outside the scanner's field of view


@restart_once
def write_phantom(
    directory: str | Path,
    patients: int = 300,
    size: int = 512,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Write a synthetic competition of `patients` patients with slices of `size` × `size` pixels.

    `directory` receives `stage_2_train/`, `stage_2_test/` (a sixth of the patients), their CSV
    files, and `stage_2_test_truth.csv`, which the real competition does not publish. The same
    arguments give the same bytes for any number of `workers` (joblib's `n_jobs`; None: all cores).

    Raises `InputError` for fewer than 3 patients or 32 pixels and `FileExistsError` if `directory`
    is not empty.
    """
    directory = Path(directory)
    if patients < 3 or size < 32:
        raise InputError(f"a phantom needs 3 patients and 32 pixels; got {patients} and {size}")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} already exists and is not an empty folder")
    directory.parent.mkdir(parents=True, exist_ok=True)
    plan = plan_patients(patients, seed)
    with (
        name_errors(directory),
        TemporaryDirectory(dir=directory.parent, prefix=f"{directory.name}.") as beside,
    ):
        partial = Path(beside) / directory.name
        for part in _PARTS:
            (partial / part).mkdir(parents=True)
        tasks = (delayed(_write_patient)(patient, size, partial) for patient in plan)
        results = Parallel(n_jobs=workers or -1, return_as="generator")(tasks)
        tables = list(progress.track(results, "Drawing patients", patients, "patients"))
        _write_csvs(partial, plan, tables)
        (partial / PHANTOM_MARK).write_text(_MARK, encoding="utf-8")
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)


def _write_patient(patient: Patient, size: int, directory: Path) -> pd.DataFrame:
    """Write a patient's files and return their labels, one row per image."""
    folder = directory / _PARTS[patient.test]
    tables = []
    for series in render_patient(patient, size):
        _write_series(series, folder)
        index = pd.Index(series.slice_ids, name="SOPInstanceUID")
        tables.append(pd.DataFrame(series.labels, index=index, columns=list(LABELS)))
    return pd.concat(tables)


def _write_series(series: Series, folder: Path) -> None:
    patient, middle = series.patient, len(series.labels) // 2
    pixels = _encode_pixels(series.hounsfield, patient.encoding)
    with warnings.catch_warnings():
        # The competition's UIDs have the form `ID_…`, which is not a valid UID.
        warnings.filterwarnings("ignore", message="Invalid value for VR UI")
        dataset = _describe_series(series)
        for k, slice_id in enumerate(series.slice_ids):
            dataset.file_meta.MediaStorageSOPInstanceUID = UID(slice_id)
            dataset.SOPInstanceUID = slice_id
            dataset.ImagePositionPatient = [f"{mm:.6f}" for mm in series.positions[k]]
            dataset.PixelData = pixels[k].tobytes()
            dataset.RescaleIntercept = str(patient.encoding.intercept)
            if patient.wrong_intercept and series.study == 0 and k == middle:
                # Signed values stored as unsigned, as in 123 of the real training files.
                signed = np.clip(series.hounsfield[k], -1000, 3095)
                dataset.PixelData = (signed % 4096).astype("<u2").tobytes()
                dataset.RescaleIntercept = "1"
            dataset.save_as(folder / f"{slice_id}.dcm", enforce_file_format=True)
    if patient.truncated and series.study == 0:
        path = folder / f"{series.slice_ids[middle]}.dcm"
        content = path.read_bytes()
        path.write_bytes(content[: len(content) - pixels[middle].nbytes * 7 // 10])


def _encode_pixels(hounsfield: np.ndarray, encoding: Encoding) -> np.ndarray:
    """The values to store, (T, rows, cols); signed ones are padded outside the scanned disk."""
    if not encoding.signed:
        return np.clip(hounsfield - encoding.intercept, 0, 4095).astype("<u2")
    stored = (hounsfield - encoding.intercept).astype("<i2")
    across = np.linspace(-1, 1, stored.shape[1])
    stored[:, np.hypot(across[:, None], across) > 1.02] = _PADDING
    return stored


def _describe_series(series: Series) -> Dataset:
    """The tags that the slices of a series share; with a slice's own, the 22 of the real files."""
    patient, encoding = series.patient, series.patient.encoding
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if encoding.implicit else ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.Modality = "CT"
    dataset.PatientID = patient.patient_id
    dataset.StudyInstanceUID = patient.study_ids[series.study]
    dataset.SeriesInstanceUID = patient.series_ids[series.study]
    dataset.StudyID = ""
    row_and_column = (1, 0, 0, 0, np.cos(series.tilt), -np.sin(series.tilt))
    dataset.ImageOrientationPatient = [f"{cosine:.6f}" for cosine in row_and_column]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = series.hounsfield.shape[1:]
    dataset.PixelSpacing = [f"{series.pixel_spacing:.6f}"] * 2
    dataset.BitsAllocated = 16
    dataset.BitsStored = encoding.bits_stored
    dataset.HighBit = encoding.bits_stored - 1
    dataset.PixelRepresentation = int(encoding.signed)
    dataset.WindowCenter, dataset.WindowWidth = encoding.window
    dataset.RescaleSlope = "1"
    return dataset


def _write_csvs(directory: Path, plan: list[Patient], tables: list[pd.DataFrame]) -> None:
    pairs = list(zip(plan, tables, strict=True))
    train = pd.concat([table for patient, table in pairs if not patient.test]).sort_index()
    test = pd.concat([table for patient, table in pairs if patient.test]).sort_index()
    again = train.iloc[:: max(1, len(train) // 4)][:4]  # the real file repeats the rows of 4 images
    for name, wide in (
        ("stage_2_train", pd.concat([train, again])),
        ("stage_2_test_truth", test),
        ("stage_2_sample_submission", test.astype(float) * 0 + 0.5),
    ):
        to_submission(wide).to_csv(directory / f"{name}.csv", index=False, lineterminator="\n")
