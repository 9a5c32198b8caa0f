"""Batches that worker processes read ahead, handed over through memory that all processes share."""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import torch

from kit.processes.workers import ScarcityError, WorkerError, explain_scarcity, shield_workers

_PREFETCH = 2  # batches that each worker reads ahead


def read_batches(
    read: Callable[[int], dict[str, Any]], count: int, size: int, workers: int
) -> Iterator[dict]:
    """Yield `read(number)` for each number below `count`, in order.

    `workers` processes call it, or this one if there are none. A batch is a dict of what pickles to
    little, and of `image`, a list of arrays of one shape and type, of at most `size` bytes
    together: it arrives as a tensor, pinned where there is a GPU, or as None for an empty list.
    Raises `ScarcityError` where the machine lacks what the processes need, `WorkerError` for one
    that died while it handed a batch over.
    """
    if not count:
        return
    with explain_scarcity():
        reader = _Reader(read, count, _share_memory(_PREFETCH * workers + 1, size))
        batches = _start_reading(reader, workers)
    for number, batch in enumerate(take_batches(batches)):
        if "scarcity" in batch:
            raise ScarcityError(batch["scarcity"])
        yield {**batch, "image": reader.take_image(number, batch["image"])}


def _start_reading(reader: _Reader, workers: int) -> Iterator[dict]:
    loader = torch.utils.data.DataLoader(
        reader,
        batch_size=None,
        sampler=range(len(reader)),
        num_workers=workers,
        collate_fn=_pass_on,
        worker_init_fn=_start_worker,
        prefetch_factor=_PREFETCH if workers else None,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    if workers:
        torch.multiprocessing.Queue()  # what it lacks is said here; torch adds a traceback
    # The workers inherit both: Ctrl-C stops the main process alone, and each has its own core.
    with shield_workers(), _limit_opencv():
        return iter(loader)


@contextlib.contextmanager
def _limit_opencv() -> Iterator[None]:
    """Let OpenCV work on one thread in processes that start in the block.

    It is set before they start: a process that was forked would wait for ever for the threads that
    OpenCV has in this one.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _start_worker(_: int) -> None:
    cv2.setNumThreads(1)  # where it was spawned; one that was forked has inherited it


def take_batches(batches: Iterator[dict]) -> Iterator[dict]:
    """Pass the batches on; an error that means a worker's death, or a want, is raised as such."""
    try:
        with explain_scarcity():
            yield from batches
    except (EOFError, ConnectionError) as error:  # killed while it was handing a batch over
        raise WorkerError("a worker process died while it was handing a batch over") from error


def _pass_on(batch: Any) -> Any:
    return batch


class _Reader(torch.utils.data.Dataset):
    """Reads whole batches; their images go into `slots` (slots, bytes), which all processes share.

    So only short texts and numbers pass between processes. Tensors would be shared one by one, as
    files in `/dev/shm`, by a thread whose errors nobody hears: full, it had the command wait for
    ever. A worker is at most `slots` − 1 batches ahead of the one that is taken last.
    """

    def __init__(self, read: Callable[[int], dict[str, Any]], count: int, slots: torch.Tensor):
        self.read, self.count, self.slots = read, count, slots

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict:
        try:
            with explain_scarcity():
                batch = self.read(number)
                return {**batch, "image": self._put_image(number, batch["image"])}
        except ScarcityError as error:
            return {"scarcity": str(error)}

    def _put_image(self, number: int, images: list[np.ndarray]) -> tuple | None:
        """Stack the images in the batch's slot; return the shape and type they have there."""
        if not images:
            return None
        shape, kind = (len(images), *images[0].shape), images[0].dtype
        np.stack(images, out=self._open_slot(number, shape, kind))
        return shape, kind

    def _open_slot(self, number: int, shape: tuple, kind: np.dtype) -> np.ndarray:
        slot = self.slots[number % len(self.slots)].numpy()
        return slot[: math.prod(shape) * kind.itemsize].view(kind).reshape(shape)

    def take_image(self, number: int, form: tuple | None) -> torch.Tensor | None:
        """Copy the images of a batch, and so free its slot."""
        if form is None:
            return None
        source = torch.from_numpy(self._open_slot(number, *form))
        pinned = torch.cuda.is_available()
        return torch.empty(source.shape, dtype=source.dtype, pin_memory=pinned).copy_(source)


def _share_memory(slots: int, size: int) -> torch.Tensor:
    """Memory that the processes started from now on share, uint8 (slots, size)."""
    if sys.platform == "linux":  # of no file, so that the size of /dev/shm does not matter
        return torch.frombuffer(mmap.mmap(-1, slots * size), dtype=torch.uint8).view(slots, size)
    return torch.empty((slots, size), dtype=torch.uint8).share_memory_()
