"""Embeddings of all slices: their extraction, and the store that holds them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import DTypeLike

from kit import InputError, images, progress
from kit.classifier import Classifier, fuse_normalization, load_classifier
from kit.competition import LABELS
from kit.files import hash_file, name_errors, read_json, replace_file, write_json
from kit.processes import restart_once
from kit.sequences import SeriesDataset
from kit.training import amp
from kit.training.checkpoints import TrainingError
from kit.training.distributed import all_have, rank, wait_for_all, world_size
from kit.training.inference import predict
from kit.training.loop import OutOfTime, seed_random

_FLUSH_SECONDS = 60  # how much extraction a crash may cost


class EmbeddingStore:
    """A folder with `embeddings.npy` (N, E) float16, memory-mapped, and the slices' ids beside it.

    `ids` (N,) are SOPInstanceUIDs in row order; `failed` maps those that could not be read to the
    reason (their rows are zeros); `logits` (N, 6) float32 are the classifier's, or None;
    `provenance` says what the embeddings were made from. Raises `InputError` naming the folder.
    """

    def __init__(self, directory: Path):
        try:
            name = directory / "embeddings.npy"
            self.embeddings = np.load(name, mmap_mode="r", allow_pickle=False)
            self.provenance = read_json(directory / "store.json")
            ids = (directory / "ids.txt").read_text(encoding="utf-8")
            self.ids = np.array(ids.split("\n")[:-1])
            logits = directory / "logits.npy"
            self.logits = np.load(logits, allow_pickle=False) if logits.exists() else None
            self.failed = dict(self.provenance["failed"])
            self.codes = dict(self.provenance.get("codes", {}))  # not in older stores
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{directory}: not an embedding store ({error})") from error
        if self.embeddings.dtype != np.float16 or self.embeddings.ndim != 2:
            raise InputError(f"{directory}: embeddings.npy is no float16 table")
        if len(self.ids) != len(self.embeddings):
            raise InputError(
                f"{directory}: {len(self.ids)} ids for {len(self.embeddings)} embeddings"
            )
        self.directory = directory

    def find_rows(self, ids) -> np.ndarray:
        """The row of each SOPInstanceUID, (len(ids),); −1 for one without an embedding."""
        rows = pd.Index(self.ids).get_indexer(ids)
        if self.failed:
            rows[np.isin(np.asarray(ids, dtype=object), list(self.failed))] = -1
        return rows

    def probabilities(self, ids) -> np.ndarray:
        """The classifier's own probabilities, (len(ids), 6); NaN for a slice without any."""
        rows = self.find_rows(ids)
        probabilities = np.full((len(rows), len(LABELS)), np.nan)
        if self.logits is None:
            return probabilities
        logits = self.logits[rows[rows >= 0]].astype(np.float64)
        probabilities[rows >= 0] = 1 / (1 + np.exp(-logits))
        return probabilities


def make_series(store: EmbeddingStore, table: pd.DataFrame) -> SeriesDataset:
    """The series of a part of the slice table, with their embeddings."""
    rows = store.find_rows(table["SOPInstanceUID"])
    logits = store.logits if store.logits is None else store.logits[rows]
    return SeriesDataset(store.embeddings, table, rows, logits)


@restart_once
def extract_embeddings(
    table: pd.DataFrame,
    weights: Path,
    directory: Path,
    device: torch.device,
    workers: int,
    batch_size: int | None = None,
    description: str = "Embeddings",
    deadline: float | None = None,
) -> EmbeddingStore:
    """Embed every slice of `table` with the classifier in `weights`; a second call continues.

    Each file is decoded once; flip and transpose are made on the device. Under `torchrun` each
    process fills its part of the one store. Raises `InputError` if no file gives an image,
    `TrainingError` for an embedding not finite in float16, `OutOfTime` past `time.monotonic`'s
    `deadline`.
    """
    provenance = {"weights": weights.name, "weights_sha256": hash_file(weights)}
    if (store := _find_store(directory, provenance)) is not None:
        return store
    model = load_classifier(weights).to(device)
    config = model.config
    at_once = batch_size or images.choose_batch(config.image_size, device)
    writer = _open_store(directory, len(table), model.embedding_size, provenance)
    dataset = images.SliceDataset(table, config)
    batches = writer.list_batches(images.choose_reading(config, at_once))
    opt_level = amp.choose_convolution_level(device, config.opt_level)
    bar = progress.open_bar(description, writer.end - writer.begin, "slices", writer.finished)
    stopped = False
    with seed_random(0, device), bar:  # torch's loader draws a number, though nothing uses it
        loader = writer.note_failures(images.load_batches(dataset, batches, workers))
        for batch, outputs in predict(_make_forward(model, at_once), loader, device, opt_level):
            writer.write(batch, *outputs)
            bar.update(writer.finished - bar.n)
            if stopped := deadline is not None and time.monotonic() > deadline:
                break
    writer.flush()
    if not all_have(not stopped, device):  # a process that has finished stops with the others
        raise OutOfTime(f"{description}: stopped in time after {writer.finished} slices")
    return writer.finish(table["SOPInstanceUID"])


def _make_forward(model: Classifier, at_once: int) -> Callable[[dict], tuple]:
    """The function from a batch to embeddings (B, E) float16 and logits (B, 6); fuses the model."""
    model.backbone = fuse_normalization(model.backbone)
    embed = model.embed_views if model.config.test_augmentation else model.embed

    def forward(batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        pieces = ({**batch, "parts": part} for part in batch["parts"].split(at_once))
        embeddings = torch.cat([embed(images.join_neighbours(piece)) for piece in pieces])
        logits = model.head(embeddings.to(model.head.weight.dtype))
        return embeddings.half(), logits.float()

    return forward


def _find_store(directory: Path, provenance: dict) -> EmbeddingStore | None:
    """Open a finished store by the same weights. One by others is no longer taken for finished."""
    if not (directory / "store.json").exists():
        return None
    store = EmbeddingStore(directory)
    if store.provenance.get("weights_sha256") == provenance["weights_sha256"]:
        return store
    (directory / "store.json").unlink()
    return None


def _open_store(directory: Path, slices: int, size: int, provenance: dict) -> _StoreWriter:
    """Open the store to be filled: as an earlier extraction by these weights left it, else new.

    Its arrays are `*.npy.part` for now. Each process notes its progress in a file of its own; if
    one has noted any, none starts from the beginning.
    """
    directory.mkdir(parents=True, exist_ok=True)
    processes = world_size()
    if rank() == 0 and not _is_begun(directory, processes, provenance):
        for marker in directory.glob("progress*.json"):
            marker.unlink()
        create_array(directory / "embeddings.npy.part", (slices, size), np.float16)
        create_array(directory / "logits.npy.part", (slices, len(LABELS)), np.float32)
    wait_for_all()
    begin, end = slices * rank() // processes, slices * (rank() + 1) // processes
    marker = directory / f"progress{rank()}of{processes}.json"
    fresh = _Progress(begin, provenance["weights_sha256"])
    noted = _read_progress(marker) if marker.exists() else fresh
    embeddings, logits = (
        np.load(directory / f"{name}.npy.part", mmap_mode="r+", allow_pickle=False)
        for name in ("embeddings", "logits")
    )
    return _StoreWriter(directory, provenance, marker, embeddings, logits, begin, end, noted)


def _is_begun(directory: Path, processes: int, provenance: dict) -> bool:
    """Whether an earlier extraction by these weights and as many processes noted any progress."""
    markers = list(directory.glob("progress*.json"))
    digests = {_read_progress(marker).weights_sha256 for marker in markers}
    fit = all(marker.stem.endswith(f"of{processes}") for marker in markers)
    known = digests == {provenance["weights_sha256"]}
    return fit and known and (directory / "embeddings.npy.part").exists()


@dataclass
class _Progress:
    """What a process notes about its part: rows done, and by failed row the reason and its code."""

    done: int
    weights_sha256: str
    failed: dict[int, str] = field(default_factory=dict)
    codes: dict[int, str] = field(default_factory=dict)


def _read_progress(marker: Path) -> _Progress:
    try:
        state = read_json(marker)
        failed, codes = (
            {int(row): text for row, text in state.get(name, {}).items()}
            for name in ("failed", "codes")  # older stores have no codes
        )
        return _Progress(int(state["done"]), state["weights_sha256"], failed, codes)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{marker}: not the progress of an extraction ({error})") from error


@dataclass
class _StoreWriter:
    """A store that is being filled. This process has rows `begin` to `end`, and `done` so far."""

    directory: Path
    provenance: dict
    marker: Path
    embeddings: np.memmap
    logits: np.memmap
    begin: int
    end: int
    noted: _Progress
    flushed: float = field(default_factory=time.monotonic)

    @property
    def finished(self) -> int:
        return self.noted.done - self.begin

    def list_batches(self, size: int) -> list[np.ndarray]:
        """The rows that are still to do, in batches."""
        starts = range(self.noted.done, self.end, size)
        return [np.arange(start, min(start + size, self.end)) for start in starts]

    def note_failures(self, batches: Iterable[dict]) -> Iterator[dict]:
        """Pass on the batches that hold an image; keep the reasons of the slices that gave none."""
        for batch in batches:
            self.noted.failed.update(batch["failed"])
            self.noted.codes.update(batch["codes"])
            if batch["image"] is not None:
                yield batch

    def write(self, batch: dict, embeddings: torch.Tensor, logits: torch.Tensor) -> None:
        """Write the embeddings (B, E) float16 and logits (B, 6) of a batch; flush now and then."""
        rows, values, scores = batch["rows"], embeddings.numpy(), logits.numpy()
        finite = np.isfinite(values).all(axis=1) & np.isfinite(scores).all(axis=1)
        if not finite.all():
            worst = batch["names"][int(finite.argmin())]
            raise TrainingError(f"{worst}: its embedding is not finite in float16")
        self.embeddings[rows], self.logits[rows] = values, scores
        self.noted.done = int(rows[-1]) + 1
        if time.monotonic() - self.flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put what is done on the disk, then the note that it is done."""
        self.embeddings.flush()
        self.logits.flush()
        write_json(self.marker, asdict(self.noted))
        self.flushed = time.monotonic()

    def finish(self, ids: pd.Series) -> EmbeddingStore:
        """Wait for the other processes, gather their failures, and complete the store."""
        self.noted.done = self.end
        self.flush()
        wait_for_all()
        if rank() == 0:
            self._complete(ids)
        wait_for_all()
        return EmbeddingStore(self.directory)

    def _complete(self, ids: pd.Series) -> None:
        markers, failed, codes = sorted(self.directory.glob("progress*.json")), {}, {}
        for noted in map(_read_progress, markers):
            failed.update({str(ids.iloc[row]): reason for row, reason in noted.failed.items()})
            codes.update({str(ids.iloc[row]): code for row, code in noted.codes.items()})
        if len(failed) < len(ids):
            for name in ("embeddings", "logits"):
                os.replace(self.directory / f"{name}.npy.part", self.directory / f"{name}.npy")
            seal_store(self.directory, ids, {**self.provenance, "failed": failed, "codes": codes})
        for marker in markers:
            marker.unlink()
        if len(failed) == len(ids):
            name, reason = next(iter(failed.items()))
            raise InputError(f"no slice gives an image; the first is {name}: {reason}")


def seal_store(directory: Path, ids: Iterable[str], provenance: dict) -> None:
    """Write the ids and, last, `store.json`, which makes the store complete."""
    with replace_file(directory / "ids.txt") as part:
        part.write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")
    write_json(directory / "store.json", provenance)


def create_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> np.memmap:
    """Create a memory-mapped `.npy` file with all its room: a full disk may kill later writes."""
    with name_errors(path):
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        array.flush()
        if hasattr(os, "posix_fallocate"):  # neither on macOS nor on Windows
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return array
