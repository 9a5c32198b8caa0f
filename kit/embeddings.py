"""Embeddings of all slices: extraction, and the store they live in."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import distributed

from kit import images, progress
from kit.classifier import load_classifier
from kit.competition import LABELS
from kit.cpu import spare_threads
from kit.files import hash_file, name_errors, read_json, replace_file, write_json
from kit.fusion import fuse_normalization
from kit.processes import restart_once
from kit.sequences import SeriesDataset
from kit.training import amp
from kit.training.checkpoints import TrainingError
from kit.training.distributed import all_have, rank, world_size
from kit.training.loop import OutOfTime, predict

_FLUSH_SECONDS = 60  # how much extraction a crash may cost


class EmbeddingStore:
    """A folder with `embeddings.npy` (N, E) float16, memory-mapped, and the slices' ids beside it.

    `ids` (N,) are SOPInstanceUIDs in row order; `failed` maps those that could not be read to the
    reason (their rows are zeros); `logits` (N, 6) float32 are the classifier's, or None;
    `provenance` says what the embeddings were made from.
    """

    def __init__(self, directory: Path):
        try:
            self.embeddings = np.load(
                directory / "embeddings.npy", mmap_mode="r", allow_pickle=False
            )
            self.provenance = read_json(directory / "store.json")
            self.ids = np.array(
                (directory / "ids.txt").read_text(encoding="utf-8").split("\n")[:-1]
            )
            logits = directory / "logits.npy"
            self.logits = np.load(logits, allow_pickle=False) if logits.exists() else None
            self.failed = dict(self.provenance["failed"])
            self.codes = dict(self.provenance.get("codes", {}))  # not in older stores
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{directory}: not an embedding store ({error})") from error
        if self.embeddings.dtype != np.float16 or self.embeddings.ndim != 2:
            raise ValueError(f"{directory}: embeddings.npy is no float16 table")
        if len(self.ids) != len(self.embeddings):
            raise ValueError(
                f"{directory}: {len(self.ids)} ids for {len(self.embeddings)} embeddings"
            )
        self.directory = directory

    def find_rows(self, ids) -> np.ndarray:
        """The row of each SOPInstanceUID, (len(ids),); −1 where there is no embedding of it."""
        rows = pd.Index(self.ids).get_indexer(ids)
        if self.failed:
            rows[np.isin(np.asarray(ids, dtype=object), list(self.failed))] = -1
        return rows

    def probabilities(self, ids) -> np.ndarray:
        """The classifier's own probabilities, (len(ids), 6); NaN where none are known."""
        rows = self.find_rows(ids)
        probabilities = np.full((len(rows), len(LABELS)), np.nan)
        if self.logits is None:
            return probabilities
        logits = self.logits[rows[rows >= 0]].astype(np.float64)
        probabilities[rows >= 0] = 1 / (1 + np.exp(-logits))
        return probabilities


def make_series(store: EmbeddingStore, table: pd.DataFrame) -> SeriesDataset:
    """The series of a part of the slice table, with their embeddings."""
    return SeriesDataset(store.embeddings, table, store.find_rows(table["SOPInstanceUID"]))


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
    """Embed every slice of `table` by the classifier in `weights`; a second call goes on.

    Each file is decoded once; flip and transpose are made on the device. Under `torchrun` each
    process fills its part of the one store. Raises `TrainingError` for an embedding that is not
    finite in float16, and `OutOfTime` past `deadline` (of `time.monotonic`).
    """
    provenance = {"weights": weights.name, "weights_sha256": hash_file(weights)}
    if (directory / "store.json").exists():
        store = EmbeddingStore(directory)
        if store.provenance["weights_sha256"] == provenance["weights_sha256"]:
            return store
        (directory / "store.json").unlink()
    model = load_classifier(weights).to(device)
    fuse_normalization(model.backbone)
    config = model.config
    spare_threads(config.image_size)
    opt_level = amp.choose_convolution_level(device, config.opt_level)
    embed = model.embed_views if config.test_augmentation else model.embed
    dataset = images.SliceDataset(table, config.image_size, config.crop, config.repair)
    writer = _StoreWriter(directory, len(table), model.embedding_size, provenance)

    def forward(batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        embeddings = embed(batch["image"])
        return embeddings, model.head(embeddings.to(model.head.weight.dtype))

    batch_size = batch_size or images.choose_batch(config.image_size, device)
    starts = range(writer.done, writer.end, batch_size)
    batches = [np.arange(start, min(start + batch_size, writer.end)) for start in starts]
    loader = writer.note_failures(images.load_batches(dataset, batches, workers))
    bar = progress.open_bar(description, writer.end - writer.begin, "slices", writer.finished)
    stopped = False
    with bar:
        for batch, outputs in predict(forward, loader, device, opt_level):
            writer.write(batch, *outputs)
            bar.update(writer.finished - bar.n)
            stopped = deadline is not None and time.monotonic() > deadline
            if stopped:
                break
    writer.flush()
    if not all_have(not stopped, device):  # a process that has finished stops with the others
        raise OutOfTime(f"{description}: stopped in time after {writer.finished} slices")
    return writer.finish(table["SOPInstanceUID"])


class _StoreWriter:
    """The store while it is being filled, rows `begin` to `end` by this process, `done` so far."""

    def __init__(self, directory: Path, slices: int, size: int, provenance: dict):
        directory.mkdir(parents=True, exist_ok=True)
        processes = world_size()
        self.begin, self.end = slices * rank() // processes, slices * (rank() + 1) // processes
        self.directory, self.provenance, self.failed = directory, provenance, {}
        self.codes: dict[int, str] = {}
        self.marker = directory / f"progress{rank()}of{processes}.json"
        # All or nothing: where one process has begun with these weights, none begins anew.
        fresh = rank() == 0 and not _find_markers(directory, processes, provenance)
        if fresh:
            for marker in directory.glob("progress*.json"):
                marker.unlink()
        self.embeddings = open_array(directory, "embeddings", (slices, size), np.float16, fresh)
        self.logits = open_array(directory, "logits", (slices, len(LABELS)), np.float32, fresh)
        self.done = self.begin
        if self.marker.exists():
            state = read_json(self.marker)
            self.done = state["done"]
            self.failed = {int(row): reason for row, reason in state["failed"].items()}
            self.codes = {int(row): code for row, code in state.get("codes", {}).items()}
        self.flushed = time.monotonic()

    @property
    def finished(self) -> int:
        return self.done - self.begin

    def note_failures(self, batches):
        """Pass on the batches that hold an image; keep the reasons of the slices that gave none."""
        for batch in batches:
            self.failed.update(batch["failed"])
            self.codes.update(batch["codes"])
            if batch["image"] is not None:
                yield batch

    def write(self, batch: dict, embeddings: torch.Tensor, logits: torch.Tensor) -> None:
        rows = batch["rows"]
        values = embeddings.half().cpu().numpy()
        logits = logits.float().cpu().numpy()
        finite = np.isfinite(values).all(axis=1) & np.isfinite(logits).all(axis=1)
        if not finite.all():
            worst = batch["names"][int(finite.argmin())]
            raise TrainingError(f"{worst}: its embedding is not finite in float16")
        self.embeddings[rows], self.logits[rows] = values, logits
        self.done = int(rows[-1]) + 1
        if time.monotonic() - self.flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put what is done on the disk, then the note that it is done."""
        self.embeddings.flush()
        self.logits.flush()
        digest = self.provenance["weights_sha256"]
        state = {"done": self.done, "failed": self.failed, "codes": self.codes}
        write_json(self.marker, {**state, "weights_sha256": digest})
        self.flushed = time.monotonic()

    def finish(self, ids: pd.Series) -> EmbeddingStore:
        """Gather the processes' failures, then give the files their names."""
        self.done = self.end
        self.flush()
        if distributed.is_initialized():
            distributed.barrier()
        if rank() == 0:
            failed, codes = {}, {}
            markers = sorted(self.directory.glob("progress*.json"))
            for marker in markers:
                state = read_json(marker)
                failed.update(state["failed"])
                codes.update(state.get("codes", {}))
            failed = {str(ids.iloc[int(row)]): reason for row, reason in failed.items()}
            codes = {str(ids.iloc[int(row)]): code for row, code in codes.items()}
            if len(failed) == len(ids):
                for marker in markers:
                    marker.unlink()
                name, reason = next(iter(failed.items()))
                raise ValueError(f"no slice gives an image, {name} for one: {reason}")
            for name in ("embeddings", "logits"):
                os.replace(self.directory / f"{name}.npy.part", self.directory / f"{name}.npy")
            seal_store(self.directory, ids, {**self.provenance, "failed": failed, "codes": codes})
            for marker in markers:
                marker.unlink()
        if distributed.is_initialized():
            distributed.barrier()
        return EmbeddingStore(self.directory)


def _find_markers(directory: Path, processes: int, provenance: dict) -> list[Path]:
    """How far an earlier extraction by these weights and as many processes came; none else."""
    markers = list(directory.glob("progress*.json"))
    states = [read_json(marker) for marker in markers]
    same = [state["weights_sha256"] == provenance["weights_sha256"] for state in states]
    fit = all(marker.stem.endswith(f"of{processes}") for marker in markers)
    begun = (directory / "embeddings.npy.part").exists()
    return markers if fit and all(same) and begun else []


def seal_store(directory: Path, ids, provenance: dict) -> None:
    """Write the ids and, last, `store.json`: with it the store is complete."""
    with replace_file(directory / "ids.txt") as part:
        part.write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")
    write_json(directory / "store.json", provenance)


def open_array(directory: Path, name: str, shape, dtype, fresh: bool) -> np.memmap:
    """The memory-mapped `name.npy.part`, new where `fresh`; the same for every process."""
    path = directory / f"{name}.npy.part"
    if fresh:
        with name_errors(path):
            np.lib.format.open_memmap(path, "w+", dtype, shape).flush()
            # Taken now: a disk that fills up under a memory map would kill the process.
            if hasattr(os, "posix_fallocate"):  # not on a Mac
                with open(path, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    if distributed.is_initialized():
        distributed.barrier()
    return np.load(path, mmap_mode="r+", allow_pickle=False)
