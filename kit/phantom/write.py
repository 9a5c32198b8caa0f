"""A synthetic competition in Kaggle's layout: heads, their bleedings, and the files' real oddities.

Not anatomy for teaching and not a medical device: simple surfaces in millimetres, made so that
everything the pipeline must survive occurs, and so that neighbouring slices carry information.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from kit import progress
from kit.competition import LABELS, to_submission
from kit.files import name_errors
from kit.phantom.anatomy import (
    AIR,
    EPIDURAL,
    INTRAPARENCHYMAL,
    INTRAVENTRICULAR,
    SUBARACHNOID,
    SUBDURAL,
    Bleeding,
    Head,
    Planes,
    draw_bleeding,
    draw_head,
    render_planes,
    span,
)
from kit.processes import restart_once

# Shares of patients, not of slices: epidural is drawn more often than it is in the real data
# (3 % of bleeding slices), so that a small phantom has all five.
BLEEDING_PATIENTS = 0.55
MAIN_BLEEDING = (0.06, 0.34, 0.08, 0.24, 0.28)
SECOND_BLEEDING = {  # main → (second, its probability)
    EPIDURAL: (SUBARACHNOID, 0.3),
    INTRAPARENCHYMAL: (INTRAVENTRICULAR, 0.35),
    INTRAVENTRICULAR: (SUBARACHNOID, 0.3),
    SUBARACHNOID: (INTRAVENTRICULAR, 0.25),
    SUBDURAL: (SUBARACHNOID, 0.25),
}
FAINT_BLEEDINGS = 0.15
# Mean number of one-slice lookalikes. A head without blood has more of them, and a bleeding head's
# resemble its own bleeding: so a series as a whole tells little, and only the order of its slices
# tells a lookalike from blood.
DECOYS_BESIDE_BLOOD, DECOYS_ALONE = 1.5, 4.2
VISIBLE_AREA = 60.0  # mm² of blood from which a slice is called positive
SUBPLANES = 4  # planes averaged over a slice's thickness: partial volume
MOST_SLICES = 60
PARTS = ("stage_2_train", "stage_2_test")

PADDING = -2000  # stored value outside the scanner's field of view


@dataclass(frozen=True)
class Encoding:
    """How a series' slices are stored; forms as they occur in the competition's files."""

    bits_stored: int
    signed: bool
    intercept: int
    implicit: bool
    window: tuple[str | list[str], str | list[str]]


ENCODINGS = (
    Encoding(16, True, -1024, False, ("30", "80")),
    Encoding(12, False, -1024, False, (["00036", "00036"], ["00080", "00080"])),
    Encoding(16, True, -1024, True, ("35.000000", "135.000000")),
    Encoding(12, False, -1000, True, ("40", "150")),
    Encoding(16, True, -1000, False, ("30", "80")),
)


@dataclass(frozen=True)
class Patient:
    """What is decided about one patient before anything is drawn; see `plan_patients`."""

    index: int
    seed: int
    patient_id: str
    study_ids: tuple[str, ...]
    series_ids: tuple[str, ...]
    slice_ids: tuple[str, ...]
    test: bool
    bleeding: int | None
    spacing: str
    encoding: Encoding
    truncated: bool = False
    wrong_intercept: bool = False


@dataclass(frozen=True)
class Series:
    """One rendered series, feet to head: T slices of `size` × `size` pixels.

    `hounsfield` (T, size, size) int16; `labels` (T, 6) int8 in the order of `LABELS`; `positions`
    (T, 3) mm, the center of each slice's first pixel; `tilt` rad about the left-right axis;
    `pixel_spacing` mm.
    """

    patient: Patient
    study: int
    slice_ids: tuple[str, ...]
    hounsfield: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    tilt: float
    pixel_spacing: float


def plan_patients(patients: int, seed: int) -> list[Patient]:
    """Deal out ids, parts, bleedings, spacings, encodings and defects over `patients` patients.

    Traits are dealt in fixed shares, not thrown, so that small phantoms have them too.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    parts, bleeds, spacings, studies = (_deal(rng, patients) for _ in range(4))
    slice_ids = _draw_ids(rng, patients * 2 * MOST_SLICES, 9)
    patient_ids, series_ids = _draw_ids(rng, patients, 8), _draw_ids(rng, patients * 4, 10)
    kinds = np.cumsum(MAIN_BLEEDING) * BLEEDING_PATIENTS
    plan = []
    for i in range(patients):
        twice = 2 if studies[i] < 0.06 else 1
        plan.append(
            Patient(
                index=i,
                seed=seed,
                patient_id=patient_ids[i],
                study_ids=series_ids[4 * i : 4 * i + twice],
                series_ids=series_ids[4 * i + 2 : 4 * i + 2 + twice],
                slice_ids=slice_ids[2 * MOST_SLICES * i : 2 * MOST_SLICES * (i + 1)],
                test=bool(parts[i] < max(1, round(patients / 6)) / patients),
                bleeding=int(np.searchsorted(kinds, bleeds[i])) if bleeds[i] < kinds[-1] else None,
                spacing=_spacing(spacings[i]),
                encoding=ENCODINGS[i % len(ENCODINGS)],
            )
        )
    return _spoil(plan)


def render_patient(patient: Patient, size: int) -> list[Series]:
    """Draw one patient's head and scan it once or twice. Same patient and size, same series."""
    rng = np.random.default_rng(np.random.SeedSequence(patient.seed, spawn_key=(patient.index,)))
    head = draw_head(rng)
    bleedings = _draw_bleedings(rng, head, patient.bleeding)
    series, used = [], 0
    for study in range(len(patient.study_ids)):
        scan = _scan(rng.spawn(1)[0], head, bleedings, patient.spacing, size)
        slice_ids = patient.slice_ids[used : used + len(scan[0])]
        series.append(Series(patient, study, slice_ids, *scan))
        used += len(slice_ids)
    return series


@restart_once
def write_phantom(
    directory: str | Path,
    patients: int = 300,
    size: int = 512,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Write a synthetic competition of `patients` patients, `size` × `size` pixels a slice.

    `directory` gets `stage_2_train/`, `stage_2_test/` (a sixth of the patients), their CSV files
    and `stage_2_test_truth.csv`, which the real competition keeps to itself. The same arguments
    give the same bytes with any number of `workers` (joblib's meaning; None: all cores).

    Raises `ValueError` for fewer than 3 patients or 32 pixels, `FileExistsError` where
    `directory` holds anything already.
    """
    directory = Path(directory)
    if patients < 3 or size < 32:
        raise ValueError(f"a phantom needs 3 patients and 32 pixels; got {patients} and {size}")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} already exists and is not an empty folder")
    directory.parent.mkdir(parents=True, exist_ok=True)
    plan = plan_patients(patients, seed)
    with (
        name_errors(directory),
        TemporaryDirectory(dir=directory.parent, prefix=f"{directory.name}.") as beside,
    ):
        partial = Path(beside) / directory.name
        for part in PARTS:
            (partial / part).mkdir(parents=True)
        tasks = (delayed(_write_patient)(patient, size, partial) for patient in plan)
        results = Parallel(n_jobs=workers or -1, return_as="generator")(tasks)
        tables = list(progress.track(results, "Drawing patients", patients, "patients"))
        _write_csvs(partial, plan, tables)
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)


def _deal(rng: np.random.Generator, patients: int) -> np.ndarray:
    """A number in (0, 1) for each patient, evenly spread, in random order."""
    return (rng.permutation(patients) + 0.5) / patients


def _draw_ids(rng: np.random.Generator, count: int, digits: int) -> tuple[str, ...]:
    numbers = dict.fromkeys(rng.integers(16**digits, size=count + 16).tolist())
    return tuple(f"ID_{number:0{digits}x}" for number in list(numbers)[:count])


def _spacing(share: float) -> str:
    return (
        "paired"
        if share < 0.05
        else "thin"
        if share < 0.1
        else ("variable" if share < 0.45 else "even")
    )


def _spoil(plan: list[Patient]) -> list[Patient]:
    """Choose the patients of the truncated and the wrongly described files."""
    train = [patient.index for patient in plan if not patient.test]
    test = [patient.index for patient in plan if patient.test]
    plan = list(plan)
    for index in (train[0], test[0]):
        plan[index] = replace(plan[index], truncated=True)
    plan[train[1]] = replace(plan[train[1]], wrong_intercept=True, encoding=ENCODINGS[3])
    return plan


def _draw_bleedings(rng: np.random.Generator, head: Head, main: int | None) -> list[Bleeding]:
    if main is None:
        return []
    labels = [main]
    second, probability = SECOND_BLEEDING[main]
    if rng.random() < probability:
        labels.append(second)
    faint = rng.random() < FAINT_BLEEDINGS
    return [
        draw_bleeding(rng, head, label, rng.uniform(46, 54) if faint else rng.uniform(56, 78))
        for label in labels
    ]


def _draw_decoys(
    rng: np.random.Generator, head: Head, offsets: np.ndarray, bleedings: list[Bleeding]
) -> list[Bleeding]:
    """One-slice lookalikes (calcification, bone's partial volume, streaks), mostly of one kind."""
    usual = bleedings[0].label if bleedings else int(rng.choice(5, p=MAIN_BLEEDING))
    inside = np.flatnonzero((offsets > -0.5 * head.axes[3]) & (offsets < 0.8 * head.axes[2]))
    decoys = []
    for _ in range(rng.poisson(DECOYS_BESIDE_BLOOD if bleedings else DECOYS_ALONE)):
        label = usual if rng.random() < 0.75 else int(rng.choice(5, p=MAIN_BLEEDING))
        only = int(rng.choice(inside))
        decoy = draw_bleeding(rng, head, label, rng.uniform(52, 78), offsets[only])
        decoys.append(replace(decoy, only=only))
    return decoys


def _draw_offsets(rng: np.random.Generator, head: Head, spacing: str) -> np.ndarray:
    """Heights (T,) in mm of the slices, feet to head, 20 to 60 of them."""
    top = head.axes[2] + head.skull + rng.uniform(0, 8)
    bottom = top - rng.uniform(125, 160)
    step = {"thin": 2.7, "paired": 5.5}.get(spacing, 5.0)
    steps = np.full(round((top - bottom) / step), step)
    if spacing == "variable":
        steps[-(len(steps) // 3) :] -= rng.uniform(0.5, 1.5)
    offsets = top - np.cumsum(steps)[::-1]
    return np.repeat(offsets, 2) if spacing == "paired" else offsets


def _scan(
    rng: np.random.Generator, head: Head, bleedings: list[Bleeding], spacing: str, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
    """One scan of a head; returns what follows `slice_ids` in `Series`."""
    offsets = _draw_offsets(rng, head, spacing)
    bleedings = bleedings + _draw_decoys(rng.spawn(1)[0], head, offsets, bleedings)
    pitch = rng.uniform(-0.15, 0.15)  # of the head in the image, whatever the gantry's tilt
    tilt = 0.0 if rng.random() < 0.1 else rng.uniform(-0.15, 0.4)
    pixel_spacing = float(rng.choice([0.3984375, 0.4296875, 0.44921875])) * 512 / size
    noise = rng.uniform(6, 10) * (size / 512) ** 0.43  # 2.5–4 HU at 64 pixels
    shift = rng.uniform(-4, 4, 2)
    table = rng.uniform(-50, 250)
    across = (np.arange(size) - (size - 1) / 2) * pixel_spacing
    x, v = across + shift[0], across + shift[1]
    wall = head.skull + head.scalp + 3
    cols = span(np.abs(x) < 1.14 * head.axes[0] + wall)  # outside this box all is air
    rows = span(np.abs(v) < head.axes[1] + wall + 0.15 * 90)
    hounsfield = np.empty((len(offsets), size, size), np.int16)
    areas = np.zeros((len(offsets), 5))
    thickness = np.diff(offsets).max()
    subplanes = ((np.arange(SUBPLANES) + 0.5) / SUBPLANES - 0.5) * thickness
    for k, offset in enumerate(offsets):
        planes = _place_planes(x[cols], v[rows], offset + subplanes, pitch)
        here = [bleeding for bleeding in bleedings if bleeding.only in (None, k)]
        plane = np.full((size, size), AIR, np.float32)
        plane[rows, cols] = render_planes(head, here, planes, areas[k])
        plane += noise * rng.standard_normal(plane.shape, dtype=np.float32)
        hounsfield[k] = np.clip(np.rint(plane, out=plane), AIR - 20, 3000)
    labels = np.zeros((len(offsets), 6), np.int8)
    labels[:, :5] = areas * pixel_spacing**2 >= VISIBLE_AREA
    labels[:, 5] = labels[:, :5].max(axis=1)
    corner = across[0] * np.array([1, np.cos(tilt), -np.sin(tilt)])
    normal = np.array([0, np.sin(tilt), np.cos(tilt)])
    positions = corner + offsets[:, None] * normal + (0, 0, table)
    return hounsfield, labels, positions, tilt, pixel_spacing


def _place_planes(x: np.ndarray, v: np.ndarray, w: np.ndarray, pitch: float) -> Planes:
    """Planes at the heights `w`, their rows at `v`, turned by `pitch` about the x axis."""
    y = v * np.cos(pitch) + w[:, None] * np.sin(pitch)
    z = w[:, None] * np.cos(pitch) - v * np.sin(pitch)
    soft = max(float(x[1] - x[0]), 0.7)
    return Planes(np.float32(x), np.float32(y)[..., None], np.float32(z)[..., None], soft)


def _write_patient(patient: Patient, size: int, directory: Path) -> pd.DataFrame:
    """Write a patient's files; returns their labels, one row an image."""
    folder = directory / PARTS[patient.test]
    tables = []
    for series in render_patient(patient, size):
        _write_series(series, folder)
        index = pd.Index(series.slice_ids, name="SOPInstanceUID")
        tables.append(pd.DataFrame(series.labels, index=index, columns=list(LABELS)))
    return pd.concat(tables)


def _write_series(series: Series, folder: Path) -> None:
    patient, middle = series.patient, len(series.labels) // 2
    pixels = _store(series.hounsfield, patient.encoding)
    with warnings.catch_warnings():
        # The competition's UIDs read `ID_…`, which is no UID.
        warnings.filterwarnings("ignore", message="Invalid value for VR UI")
        dataset = _series_dataset(series)
        for k, slice_id in enumerate(series.slice_ids):
            dataset.file_meta.MediaStorageSOPInstanceUID = slice_id
            dataset.SOPInstanceUID = slice_id
            dataset.ImagePositionPatient = [f"{mm:.6f}" for mm in series.positions[k]]
            dataset.PixelData = pixels[k].tobytes()
            dataset.RescaleIntercept = str(patient.encoding.intercept)
            if patient.wrong_intercept and series.study == 0 and k == middle:
                # Signed values read as unsigned: what 123 of the real training files hold.
                signed = np.clip(series.hounsfield[k], -1000, 3095)
                dataset.PixelData = (signed % 4096).astype("<u2").tobytes()
                dataset.RescaleIntercept = "1"
            dataset.save_as(folder / f"{slice_id}.dcm", enforce_file_format=True)
    if patient.truncated and series.study == 0:
        path = folder / f"{series.slice_ids[middle]}.dcm"
        content = path.read_bytes()
        path.write_bytes(content[: len(content) - pixels[middle].nbytes * 7 // 10])


def _store(hounsfield: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Stored values (T, rows, cols); signed files are padded outside the scanned disk."""
    if not encoding.signed:
        return np.clip(hounsfield - encoding.intercept, 0, 4095).astype("<u2")
    stored = (hounsfield - encoding.intercept).astype("<i2")
    across = np.linspace(-1, 1, stored.shape[1])
    stored[:, np.hypot(across[:, None], across) > 1.02] = PADDING
    return stored


def _series_dataset(series: Series) -> Dataset:
    """The tags that all slices of a series share: with those of a slice, the real files' 22."""
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
    again = train.iloc[:: max(1, len(train) // 4)][:4]  # the real file repeats 4 images' rows
    for name, wide in (
        ("stage_2_train", pd.concat([train, again])),
        ("stage_2_test_truth", test),
        ("stage_2_sample_submission", test.astype(float) * 0 + 0.5),
    ):
        to_submission(wide).to_csv(directory / f"{name}.csv", index=False, lineterminator="\n")
