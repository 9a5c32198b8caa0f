"""Inputs of the benchmarks: files and tables of the competition's form and size, from a seed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

SERIES_SLICES = (20, 60)  # slices per series in the competition: 20 to 60, median 34


def name_images(count: int) -> list[str]:
    """`count` different names: `ID_` and nine hexadecimal digits."""
    return [f"ID_{number:09x}" for number in np.arange(count) * 7919 % 2**36]


def draw_lengths(series: int, seed: int = 0) -> np.ndarray:
    """Slices of each series, (series,), between 20 and 60 with median 34."""
    lengths = np.random.default_rng(seed).normal(34, 6, series).round().astype(int)
    return np.clip(lengths, *SERIES_SLICES)


def write_slices(directory: Path, count: int) -> list[str]:
    """The first `count` intact 512×512 files of a phantom, which the reference can read too."""
    from kit.dicom.header import read_header
    from kit.dicom.pixels import check_pixel_bytes, may_have_wrong_intercept
    from kit.phantom.write import write_phantom

    folder = directory / "phantom"
    if not folder.exists():
        # Without workers: joblib's stay alive for five minutes, and this process would wait.
        write_phantom(folder, patients=6, size=512, seed=3, workers=1)
    found = sorted(str(path) for path in folder.rglob("*.dcm"))
    headers = {path: read_header(path) for path in found}
    sound = [
        path
        for path, header in headers.items()
        if not may_have_wrong_intercept(header) and not check_pixel_bytes(header)
    ]
    assert len(sound) >= count, f"the phantom has only {len(sound)} sound files"
    return sound[:count]


def write_series(directory: Path, slices: int) -> Path:
    """A folder with one series of `slices` different full-size files, named in random order."""
    import pydicom

    folder = directory / f"series{slices}"
    folder.mkdir(exist_ok=True)
    numbers = np.random.default_rng(4).permutation(slices)
    for place, (path, number) in enumerate(
        zip(write_slices(directory, slices), numbers, strict=True)
    ):
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = f"ID_{number:09x}"
        dataset.PatientID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "ID_p", "t", "s"
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [-125, -100, 5 * place]
        dataset.save_as(folder / f"{dataset.SOPInstanceUID}.dcm")
    return folder


def write_classifier(directory: Path, size: int, architecture: str = "resnext101_32x8d") -> Path:
    """Weights of an untrained classifier."""
    import torch

    from kit.classifier import Classifier, ClassifierConfig
    from kit.training.checkpoints import save_weights

    path = directory / f"classifier{size}.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        config = ClassifierConfig(architecture=architecture, image_size=size)
        save_weights(path, Classifier(config), epoch=1)
    return path


def write_run(directory: Path) -> Path:
    """A complete full-size run, untrained: recipe `single` with one epoch of each model."""
    import torch

    from kit.classifier import Classifier
    from kit.lstm import SequenceLSTM
    from kit.recipes import find_recipe
    from kit.runs.directory import Run, begin_run
    from kit.training.checkpoints import save_weights

    run = Run(directory / "run")
    if not run.path.exists():
        changes = {"classifier.epochs": 1, "lstm.epochs": 1, "bag_lstm_epochs": 1}
        recipe = find_recipe("single", changes)
        begin_run(run, recipe, directory)
        torch.manual_seed(0)
        for folder, model in (
            (run.classifier("all"), Classifier(recipe.classifier)),
            (run.lstm("all", 1), SequenceLSTM(recipe.lstm)),
        ):
            folder.mkdir(parents=True)
            save_weights(folder / "epoch1.safetensors", model, epoch=1)
    return run.path


def write_members(directory: Path, images: int, members: int) -> tuple[list[Path], list[Path]]:
    """Members of a bag as parquet (for the kit) and as unrounded CSV: three files, repeated."""
    from kit.competition import to_submission
    from kit.runs.tables import write_frame

    tables, texts = [], []
    for number in range(3):
        tables.append(directory / f"member{images}.{number}.parquet")
        texts.append(directory / f"member{images}.{number}.csv")
        if not texts[-1].exists():
            wide = make_probabilities(images, number)
            wide += np.random.default_rng(number).random(wide.shape) * 1e-6
            write_frame(tables[-1], wide.astype(np.float32).reset_index())
            to_submission(wide).to_csv(texts[-1], index=False)
    return (tables * members)[:members], (texts * members)[:members]


def write_headers(directory: Path, count: int) -> Path:
    """A folder of `count` full-size files whose pixels, which no index reads, are sparse."""
    folder = directory / f"headers{count}"
    if folder.exists():
        return folder
    part = folder.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    table = make_slice_table(count)
    for row in table.itertuples():
        _write_header(part / f"{row.SOPInstanceUID}.dcm", row)
    os.replace(part, folder)
    return folder


def _write_header(path: Path, row) -> None:
    import ast

    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    for name in ("SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(dataset, name, getattr(row, name))
    for name in ("ImagePositionPatient", "ImageOrientationPatient"):
        setattr(dataset, name, ast.literal_eval(getattr(row, name)))
    dataset.Modality, dataset.StudyID = "CT", ""
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.Rows = dataset.Columns = 512
    dataset.PixelSpacing = ["0.488281", "0.488281"]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1
    dataset.WindowCenter, dataset.WindowWidth = "30", "80"
    dataset.RescaleIntercept, dataset.RescaleSlope = "-1024", "1"
    dataset.add_new(0x7FE00010, "OW", b"")
    dataset.save_as(path, enforce_file_format=True)
    with open(path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write((512 * 512 * 2).to_bytes(4, "little"))
        file.truncate(file.tell() + 512 * 512 * 2)


def make_slice_table(count: int) -> pd.DataFrame:
    """Header columns of `count` slices in random order; positions are text, as in the competition.

    Within a series x is constant and y and z increase together, so that the published order by x,
    y, z equals the order along the normal, which is tilted like a gantry.
    """
    random = np.random.default_rng(5)
    tilts = np.radians(np.random.default_rng(3).normal(0, 12, 500))
    planes = [
        str([f"{number:.6f}" for number in (1, 0, 0, 0, np.cos(tilt), np.sin(tilt))])
        for tilt in tilts
    ]
    lengths = draw_lengths(count // 30 + 2)
    series = np.repeat(np.arange(len(lengths)), lengths)[:count]
    place = np.arange(count) - np.searchsorted(series, series)
    y, z = -125 + 0.2 * place, 5 * place + series % 200
    digits = [f"ID_{number:08x}" for number in range(len(lengths))]
    table = pd.DataFrame(
        {
            "SOPInstanceUID": name_images(count),
            "PatientID": np.array([f"{name}p" for name in digits], object)[series],
            "StudyInstanceUID": np.array([f"{name}t" for name in digits], object)[series],
            "SeriesInstanceUID": np.array([f"{name}s" for name in digits], object)[series],
            "ImagePositionPatient": [
                f"['-125.000000', '{a:.6f}', '{b:.6f}']" for a, b in zip(y, z, strict=True)
            ],
            "ImageOrientationPatient": np.array(planes, object)[series % len(planes)],
        }
    )
    return table.iloc[random.permutation(count)].reset_index(drop=True)


def make_series(series: int, embedding: int, seed: int = 0) -> tuple[np.ndarray, pd.DataFrame]:
    """Float16 embeddings (N, E) and the table of their slices, with labels."""
    from kit.competition import LABELS

    random = np.random.default_rng(seed)
    lengths = draw_lengths(series, seed)
    names = np.repeat([f"series{number:05d}" for number in range(series)], lengths)
    table = pd.DataFrame({"series": names.astype(object)})
    table["seq"] = table.groupby("series", sort=False).cumcount() + 1
    table["embidx"] = np.arange(len(table))
    table["SOPInstanceUID"] = name_images(len(table))
    for label in LABELS:
        table[label] = random.integers(0, 2, len(table))
    embeddings = random.random((len(table), embedding), np.float32).astype(np.float16)
    return embeddings, table


def make_probabilities(images: int, seed: int = 0) -> pd.DataFrame:
    """Wide predictions (images × labels) in whole millionths, which six decimals represent."""
    from kit.competition import LABELS

    values = np.random.default_rng(seed).integers(100, 999_900, (images, len(LABELS))) / 1e6
    index = pd.Index(name_images(images), name="SOPInstanceUID")
    return pd.DataFrame(values, index=index, columns=list(LABELS))
