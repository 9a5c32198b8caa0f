"""A store that is being filled: which rows each process embeds, and a note of those it has.

Its arrays are `*.npy.part` for now. `progress.json` notes what was done before, each process what
it does in a file of its own. Processes take whole blocks of rows, which end on a page in both
arrays, so that on a shared file system no two machines write to one page. Batches begin with a
block: the embeddings do not depend on the number of processes, which may change from one call to
the next.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kit import InputError
from kit.competition import LABELS
from kit.embeddings.store import EmbeddingStore, create_array, open_array, seal_store
from kit.files import read_json, write_json
from kit.training.checkpoints import TrainingError
from kit.training.distributed import rank, wait_for_all, world_size

FLUSH_SECONDS = 60  # how much extraction a crash may cost
BLOCK = 512  # rows; of any even number of columns, they fill whole pages

_ARRAYS = {"embeddings": np.float16, "logits": np.float32}


@dataclass
class _Progress:
    """Which rows are done (N,), and by row why one failed, with the reason's code."""

    done: np.ndarray
    failed: dict[int, str] = field(default_factory=dict)
    codes: dict[int, str] = field(default_factory=dict)

    def add(self, other: _Progress) -> None:
        self.done |= other.done
        self.failed.update(other.failed)
        self.codes.update(other.codes)


def _write_progress(marker: Path, progress: _Progress, digest: str) -> None:
    ends = np.flatnonzero(np.diff(np.concatenate([[0], progress.done, [0]])))
    noted = {"failed": progress.failed, "codes": progress.codes}
    write_json(marker, {"weights_sha256": digest, "done": ends.reshape(-1, 2).tolist(), **noted})


def _read_progress(marker: Path, slices: int, digest: str) -> _Progress | None:
    """What a marker notes of an extraction by the weights of `digest`; None if by others.

    In those of version 0.1.0 `done` is the end of what this process of several had done.
    """
    progress = _Progress(np.zeros(slices, bool))
    try:
        state = read_json(marker)
        if state["weights_sha256"] != digest:
            return None
        done = state["done"]
        if isinstance(done, int):
            number, processes = map(int, marker.stem.removeprefix("progress").split("of"))
            done = [[slices * number // processes, done]]
        for begin, end in done:
            progress.done[begin:end] = True
        progress.failed, progress.codes = (
            {int(row): text for row, text in state.get(name, {}).items()}
            for name in ("failed", "codes")  # older stores have no codes
        )
        if not all(0 <= row < slices for row in (*progress.failed, *progress.codes)):
            raise ValueError("its rows are not those of the slices")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{marker}: not the progress of an extraction ({error})") from error
    return progress


def open_store(directory: Path, slices: int, size: int, provenance: dict) -> StoreWriter:
    """Open a store to be filled, as earlier extractions by these weights left it, else new."""
    directory.mkdir(parents=True, exist_ok=True)
    marker, digest = directory / "progress.json", provenance["weights_sha256"]
    if rank() == 0:
        shapes = {"embeddings": (slices, size), "logits": (slices, len(LABELS))}
        earlier = _gather_progress(directory, digest, shapes)
        parts = list(directory.glob("progress*of*.json"))
        if earlier is None:
            for part in parts:
                part.unlink()
            marker.unlink(missing_ok=True)
            for name, dtype in _ARRAYS.items():
                create_array(directory / f"{name}.npy.part", shapes[name], dtype)
            earlier = _Progress(np.zeros(slices, bool))
        _write_progress(marker, earlier, digest)
        for part in parts:
            part.unlink(missing_ok=True)
    wait_for_all()
    earlier = _read_progress(marker, slices, digest)
    assert earlier is not None
    return StoreWriter(directory, provenance, earlier)


def _open_array(directory: Path, name: str) -> np.memmap:
    path = directory / f"{name}.npy.part"
    try:
        return open_array(path, _ARRAYS[name], "r+")
    except ValueError as error:
        raise InputError(f"{path}: not what an extraction left ({error}); remove it") from error


def _gather_progress(
    directory: Path, digest: str, shapes: dict[str, tuple[int, int]]
) -> _Progress | None:
    """What all processes of earlier extractions noted; None if there is nothing to go on from."""
    slices, gathered = shapes["embeddings"][0], None
    for marker in sorted(directory.glob("progress*.json")):
        noted = _read_progress(marker, slices, digest)
        if noted is None:
            return None
        gathered = gathered or _Progress(np.zeros(slices, bool))
        gathered.add(noted)
    for name, shape in shapes.items() if gathered else ():
        part, whole = directory / f"{name}.npy.part", directory / f"{name}.npy"
        if not part.exists() and whole.exists():  # killed just before it was complete
            os.replace(whole, part)
        if not part.exists() or _open_array(directory, name).shape != shape:
            return None
    return gathered


class StoreWriter:
    """A store that is being filled. This process does its share of what was not done `earlier`."""

    def __init__(self, directory: Path, provenance: dict, earlier: _Progress):
        self.directory, self.provenance, self.earlier = directory, provenance, earlier
        self.embeddings, self.logits = (_open_array(directory, name) for name in _ARRAYS)
        self.mine = _Progress(np.zeros(len(self.embeddings), bool))
        self.marker = directory / f"progress{rank()}of{world_size()}.json"
        self.flushed = time.monotonic()

    @property
    def finished(self) -> int:
        """How many rows are done, by what this process knows."""
        return int(np.count_nonzero(self.earlier.done) + np.count_nonzero(self.mine.done))

    def list_batches(self, size: int) -> list[np.ndarray]:
        """The rows that this process is to do, in batches of at most `size`."""
        left = np.flatnonzero(~self.earlier.done)
        blocks = np.split(left, np.flatnonzero(np.diff(left // BLOCK)) + 1) if len(left) else []
        begin, end = (len(blocks) * number // world_size() for number in (rank(), rank() + 1))
        return [
            rows[start : start + size]
            for rows in blocks[begin:end]
            for start in range(0, len(rows), size)
        ]

    def note_failures(self, batches: Iterable[dict]) -> Iterator[dict]:
        """Pass on the batches that hold an image; note the others as failed."""
        for batch in batches:
            if batch["image"] is not None:
                yield batch
            else:
                self._note(batch)

    def write(self, batch: dict, embeddings: torch.Tensor, logits: torch.Tensor) -> None:
        """Write the embeddings (B, E) float16 and logits (B, 6) of a batch; flush now and then."""
        rows, values, scores = batch["rows"], embeddings.numpy(), logits.numpy()
        finite = np.isfinite(values).all(axis=1) & np.isfinite(scores).all(axis=1)
        if not finite.all():
            worst = batch["names"][int(finite.argmin())]
            raise TrainingError(f"{worst}: its embedding is not finite in float16")
        self.embeddings[rows], self.logits[rows] = values, scores
        self._note(batch)
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def _note(self, batch: dict) -> None:
        failed = dict(batch["failed"])
        self.mine.done[[*batch["rows"], *failed]] = True
        self.mine.failed.update(failed)
        self.mine.codes.update(batch["codes"])

    def flush(self) -> None:
        """Put what is done on the disk, then the note that it is done."""
        self.embeddings.flush()
        self.logits.flush()
        _write_progress(self.marker, self.mine, self.provenance["weights_sha256"])
        self.flushed = time.monotonic()

    def finish(self, ids: pd.Series) -> EmbeddingStore:
        """Wait for the other processes, gather what they noted, and complete the store."""
        wait_for_all()
        if rank() == 0:
            self._complete(ids)
        wait_for_all()
        return EmbeddingStore(self.directory)

    def _complete(self, ids: pd.Series) -> None:
        markers = sorted(self.directory.glob("progress*.json"))
        total = _Progress(np.zeros(len(ids), bool))
        for marker in markers:
            noted = _read_progress(marker, len(ids), self.provenance["weights_sha256"])
            assert noted is not None
            total.add(noted)
        if not total.done.all():
            left = int(np.count_nonzero(~total.done))
            raise TrainingError(f"{self.directory}: no process noted {left} slices as done")
        failed = {str(ids.iloc[row]): reason for row, reason in total.failed.items()}
        codes = {str(ids.iloc[row]): code for row, code in total.codes.items()}
        if len(failed) < len(ids):
            for name in _ARRAYS:
                os.replace(self.directory / f"{name}.npy.part", self.directory / f"{name}.npy")
            seal_store(self.directory, ids, {**self.provenance, "failed": failed, "codes": codes})
        for marker in markers:
            marker.unlink()
        if len(failed) == len(ids):
            name, reason = next(iter(failed.items()))
            raise InputError(f"no slice gives an image; the first is {name}: {reason}")
