"""Slices of the table → image tensors: reading in workers, augmentation, batches."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd
import torch

from kit import InputError
from kit.competition import LABELS
from kit.dicom.parsing import DicomError, MissingError
from kit.dicom.pixels import read_hounsfield
from kit.processes import WorkerError
from kit.windowing import crop_to_head, resize_image, window_image

if TYPE_CHECKING:
    import albumentations


def read_image(path: str, size: int, crop: bool = True, repair: bool = True) -> np.ndarray:
    """DICOM file → windowed, cropped, resized image, uint8 (size, size, 3). Raises `DicomError`."""
    try:
        image = window_image(read_hounsfield(path, repair))
        return resize_image(crop_to_head(image) if crop else image, size)
    except MemoryError as error:
        raise DicomError(path, "there is not enough memory for its pixels") from error
    except InputError as error:
        raise DicomError(path, str(error)) from error


class SliceDataset(torch.utils.data.Dataset):
    """The images of a slice table, in its order.

    An item is a dict of `row`, `image` uint8 (S, S, 3) and, where the table has labels, `labels`
    (6,); or, if the file gives no image, of `row`, `reason`, its `code`, and `missing`, whether the
    file is gone.
    `augment` draws from the seed, `epoch` and row alone.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        size: int,
        crop: bool = True,
        repair: bool = True,
        augment: bool = False,
        seed: int = 0,
    ):
        self.paths = table["path"].to_numpy(object)
        labelled = set(LABELS) <= set(table.columns)
        self.labels = table[list(LABELS)].to_numpy(np.float32) if labelled else None
        self.size, self.crop, self.repair, self.seed = size, crop, repair, seed
        self.transform = make_augmentation() if augment else None
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> dict:
        try:
            image = read_image(self.paths[row], self.size, self.crop, self.repair)
        except DicomError as error:
            missing = isinstance(error, MissingError)
            return {"row": int(row), "reason": error.reason, "code": error.code, "missing": missing}
        if self.transform is not None:
            image = _augment(image, self.transform, [self.seed, self.epoch, int(row)])
        item = {"row": int(row), "image": image}
        return item if self.labels is None else {**item, "labels": self.labels[row]}


def _augment(image: np.ndarray, transform: albumentations.Compose, seeds: list[int]) -> np.ndarray:
    seed = np.random.SeedSequence(seeds).generate_state(2)
    # One state shared by all transforms: seeded one by one they would all draw the same.
    transform.set_random_state(np.random.default_rng(seed[0]), random.Random(int(seed[1])))
    return transform(image=image)["image"]


@contextlib.contextmanager
def _set_environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def make_augmentation() -> albumentations.Compose:
    """The augmentation: flip, shift/scale/rotate with a replicated border, transpose.

    Shares and ranges are those of the reference implementation.
    """
    # Set before the import: the library would look for a newer release and, offline, wait a minute.
    with _set_environment("NO_ALBUMENTATIONS_UPDATE", "1"):
        import albumentations  # takes half a second, and training alone needs it

    return albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Affine(
                translate_percent=(-0.05, 0.05),
                scale=(0.95, 1.05),
                keep_ratio=True,  # one scale for both axes
                rotate=(-20, 20),
                border_mode=cv2.BORDER_REPLICATE,
                p=0.3,
            ),
            albumentations.Transpose(p=0.5),
        ]
    )


def choose_batch(size: int, device: torch.device) -> int:
    """How many images of `size` pixels per side go through a model at once, without gradients.

    On a CPU as many pixels as four images of 480 have: measured with ResNeXt-101, 32 of those take
    three times the memory of four (5.7 against 1.6 GB) and, if freed memory goes back to the
    system, a third more time per image.
    """
    return 32 if device.type != "cpu" else max(1, min(32, 2**20 // size**2))


def load_batches(dataset: SliceDataset, batches: list[np.ndarray], workers: int) -> Iterator[dict]:
    """Yield a batch per array of rows: `image` (B, S, S, 3), `labels`, `rows`, `names`, `failed`.

    `failed` lists (row, reason) of files that gave no image, and `codes` has the reason's code for
    each of these rows; `image` is None if every file of the batch failed.
    Raises `FileNotFoundError` for a file that cannot be opened: it was there when it was indexed.
    """
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers,
        collate_fn=_Collate(dataset),
        pin_memory=torch.cuda.is_available(),
    )
    for batch in _take_batches(loader):
        if batch["missing"]:
            row, reason = batch["missing"][0]
            raise FileNotFoundError(
                errno.ENOENT,
                f"was there when it was indexed ({reason}): put it back and go on; "
                "an empty file in its place leaves the slice out",
                dataset.paths[row],
            )
        yield batch


def _take_batches(loader: torch.utils.data.DataLoader) -> Iterator[dict]:
    try:
        yield from loader
    except (EOFError, ConnectionError) as error:  # killed while it was handing a batch over
        raise WorkerError("a worker process died while it was handing a batch over") from error


class _Collate:
    def __init__(self, dataset: SliceDataset):
        self.paths = dataset.paths

    def __call__(self, items: Iterable[dict]) -> dict:
        good = [item for item in items if "image" in item]
        bad = [item for item in items if "reason" in item]
        batch = {
            "failed": [(item["row"], item["reason"]) for item in bad],
            "codes": {item["row"]: item["code"] for item in bad},
            "missing": [(item["row"], item["reason"]) for item in bad if item["missing"]],
            "rows": np.array([item["row"] for item in good], dtype=np.int64),
            "names": [self.paths[item["row"]] for item in good],
            "image": torch.from_numpy(np.stack([item["image"] for item in good])) if good else None,
        }
        if good and "labels" in good[0]:
            batch["labels"] = torch.from_numpy(np.stack([item["labels"] for item in good]))
        return batch
