"""Slices of the table → image tensors: reading in workers, augmentation, batches."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd
import torch

from kit import InputError
from kit.competition import LABELS
from kit.dicom.parsing import DicomError, MissingError
from kit.dicom.pixels import read_hounsfield
from kit.processes import blame_machine, reading
from kit.windowing.config import InputConfig
from kit.windowing.render import render_image

if TYPE_CHECKING:
    import albumentations


# A slice's file, its values in HU (rows, cols), or those of which the mean is taken.
Source = str | Path | np.ndarray | tuple


def read_image(source: Source, config: InputConfig) -> np.ndarray:
    """Source → the image that a model sees, (S, S, windows). Raises `DicomError`."""
    path = source if isinstance(source, str | Path) else "an array"
    try:
        return render_image(read_source(source, config.repair), config)
    except MemoryError as error:
        raise DicomError(path, "there is not enough memory for its pixels") from error
    except InputError as error:
        raise DicomError(path, str(error)) from error


def read_source(source: Source, repair: bool) -> np.ndarray:
    """The values of a source, (rows, cols) HU. Raises `DicomError`."""
    if isinstance(source, str | Path):
        return read_hounsfield(source, repair)
    if isinstance(source, np.ndarray):
        return source
    found = [read_source(one, repair) for one in source]
    if len({one.shape for one in found}) > 1:
        raise DicomError(str(source[0]), "slices of several sizes cannot be averaged")
    return np.stack(found).mean(axis=0, dtype=np.float32)


class SliceDataset(torch.utils.data.Dataset):
    """The images of a slice table, in its order, each with the neighbours that the model sees.

    An item is a dict of `row`, `slices`, a list of images (S, S, windows) in the order of
    `config.neighbours`, and, where the table has labels, `labels` (6,); or, if the file gives no
    image, of `row`, `reason`, its `code`, and `missing`, the path of a file that is gone.

    Pixels are read from `source`, a `Source`, where the table has that column, else from `path`.

    A neighbour is the next slice of the series in that direction that can be read, however far
    away; beyond the ends of the series it is None or, by `config.missing`, the last one before.
    `augment` draws from the seed, `epoch` and the row's number in `draws`, by default the row, once
    for a slice and its neighbours; rows of one number are augmented alike.
    Images are taken from `cache`, an `ImageCache`, at the places that are the table's index, or
    else kept there.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        config: InputConfig,
        augment: bool = False,
        seed: int = 0,
        cache: Any = None,
    ):
        self.cache, self.places = cache, table.index.to_numpy()
        self.paths = table["path"].to_numpy(object)
        self.sources = table["source"].to_numpy(object) if "source" in table else self.paths
        labelled = set(LABELS) <= set(table.columns)
        self.labels = table[list(LABELS)].to_numpy(np.float32) if labelled else None
        self.config, self.seed = config, seed
        self.transform = make_augmentation() if augment else None
        self.epoch, self.draws = 0, np.arange(len(table))
        self._read: Callable[[int], np.ndarray] = self._read_row
        if config.neighbours != (0,):
            self.series = pd.factorize(table["series"])[0]
            # A slice is read once for all that see it, if they are read one after another.
            span = max(config.neighbours) - min(config.neighbours)
            self._read = _Memory(self._read_row, 2 * span + 2)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> dict:
        try:
            slices = [self._read_neighbour(row, offset) for offset in self.config.neighbours]
        except DicomError as error:
            blame_machine(error)
            missing = error.path if isinstance(error, MissingError) else None
            return {"row": int(row), "reason": error.reason, "code": error.code, "missing": missing}
        if self.transform is not None:
            seeds = [self.seed, self.epoch, int(self.draws[row])]
            slices = [s if s is None else _augment(s, self.transform, seeds) for s in slices]
        item = {"row": int(row), "slices": slices}
        return item if self.labels is None else {**item, "labels": self.labels[row]}

    def _read_row(self, row: int) -> np.ndarray:
        if self.cache is None:
            return read_image(self.sources[row], self.config)
        return self.cache.read(self.places[row], lambda: read_image(self.sources[row], self.config))

    def _read_neighbour(self, row: int, offset: int) -> np.ndarray | None:
        """Read the image `offset` slices after `row`; None beyond the end of its series.

        Raises `DicomError` where `row` itself gives none, or where a file is gone.
        """
        image, place, step = self._read(row), row, 1 if offset > 0 else -1
        while offset:
            place += step
            if not 0 <= place < len(self) or self.series[place] != self.series[row]:
                return image if self.config.missing == "edge" else None
            try:
                image = self._read(place)
                offset -= step
            except MissingError:
                raise
            except DicomError:
                continue  # it has its reason where it is a row itself
        return image


class _Memory:
    """A function of a row that is called once for a row that recurs among the last `size`."""

    def __init__(self, read: Callable[[int], np.ndarray], size: int):
        self.read, self.size = read, size
        self.kept: dict[int, np.ndarray | DicomError] = {}

    def __call__(self, row: int) -> np.ndarray:
        if row not in self.kept:
            if len(self.kept) == self.size:
                del self.kept[next(iter(self.kept))]
            try:
                self.kept[row] = self.read(row)
            except DicomError as error:
                self.kept[row] = error.with_traceback(None)
        found = self.kept[row]
        if isinstance(found, DicomError):
            raise found
        return found


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


def choose_reading(config: InputConfig, at_once: int) -> int:
    """How many slices a worker reads for a batch, of which `at_once` go through a model at once.

    At the ends of a batch it reads neighbours that belong to other batches. Of this many slices
    these are an eighth.
    """
    span = max(config.neighbours) - min(config.neighbours)
    return max(at_once, 8 * span)


def load_batches(dataset: SliceDataset, batches: list[np.ndarray], workers: int) -> Iterator[dict]:
    """Yield a batch per array of rows: `image`, `parts`, `labels`, `rows`, `names`, `failed`.

    `image` (N, S, S, windows) holds the B slices of the batch and the neighbours they are seen
    with, each once; `parts` (B, K) says which of them a slice is seen as, −1 for none.
    `join_neighbours` makes of it what the model takes.
    `failed` lists (row, reason) of files that gave no image, and `codes` has the reason's code for
    each of these rows; `image` is None if every file of the batch failed.
    Raises `FileNotFoundError` for a file that cannot be opened: it was there when it was indexed;
    otherwise as `reading.read_batches`.
    """
    config = dataset.config
    most = max(map(len, batches), default=0) * len(config.neighbours)
    pixels = most * config.image_size**2 * len(config.windows)
    size = pixels * (1 if config.scale == "uint8" else 4)  # bytes; the other scales are float32
    reader = _BatchReader(dataset, batches)
    for batch in reading.read_batches(reader, len(batches), size, workers):
        if batch["missing"]:
            path, reason = batch["missing"][0]
            raise FileNotFoundError(
                errno.ENOENT,
                f"was there when it was indexed ({reason}): put it back and go on; "
                "an empty file in its place leaves the slice out",
                path,
            )
        for name in batch.keys() & {"parts", "labels"}:
            batch[name] = torch.from_numpy(batch[name])
        yield batch


class _BatchReader:
    """Reads the batch of a number, as `reading.read_batches` takes it."""

    def __init__(self, dataset: SliceDataset, batches: list[np.ndarray]):
        self.dataset, self.batches = dataset, batches

    def __call__(self, number: int) -> dict[str, Any]:
        items = [self.dataset[row] for row in self.batches[number].tolist()]
        good = [item for item in items if "slices" in item]
        bad = [item for item in items if "reason" in item]
        images, parts = _list_parts([item["slices"] for item in good])
        batch: dict[str, Any] = {
            "failed": [(item["row"], item["reason"]) for item in bad],
            "codes": {item["row"]: item["code"] for item in bad},
            "missing": [(item["missing"], item["reason"]) for item in bad if item["missing"]],
            "rows": np.array([item["row"] for item in good], dtype=np.int64),
            "names": [self.dataset.paths[item["row"]] for item in good],
            "parts": parts,
            "image": images,
        }
        if good and "labels" in good[0]:
            batch["labels"] = np.stack([item["labels"] for item in good])
        return batch


def _list_parts(found: list[list[np.ndarray | None]]) -> tuple[list[np.ndarray], np.ndarray]:
    """The images of B slices, K each, every one once; which of them each slice is seen as."""
    # A slice that several see is one array: `_Memory` hands out the same.
    each = {id(image): image for slices in found for image in slices if image is not None}
    places = {name: place for place, name in enumerate(each)} | {id(None): -1}
    parts = [[places[id(image)] for image in slices] for slices in found]
    return list(each.values()), np.array(parts, dtype=np.int64)


def stack_slices(found: list[list[np.ndarray | None]]) -> dict[str, torch.Tensor]:
    """Stack the images of B slices, K each: `image` and `parts` as `load_batches` yields them."""
    images, parts = _list_parts(found)
    return {"image": torch.from_numpy(np.stack(images)), "parts": torch.from_numpy(parts)}


def join_neighbours(batch: dict) -> torch.Tensor:
    """What the model takes of a batch, (B, S, S, channels): each slice with its neighbours."""
    images, parts = batch["image"], batch["parts"]
    present = (parts >= 0)[:, :, None, None, None].to(images.dtype)
    joined = images[parts.clamp(min=0)] * present  # (B, K, S, S, windows)
    return joined.permute(0, 2, 3, 1, 4).flatten(3)
