"""How many cores there are, and worker processes that die."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from functools import wraps
from typing import ParamSpec, TypeVar

from kit import KitError
from kit.progress import log

_Given = ParamSpec("_Given")
Result = TypeVar("Result")


_DEATH = (
    "a worker process died, as happens for want of memory: the same command continues, "
    "and with fewer --workers needs less"
)


class WorkerError(KitError, RuntimeError):
    """A worker process died."""


def count_cores() -> int:
    """The cores that this process may use, by its affinity and its container's CPU quota."""
    from joblib import cpu_count

    return cpu_count()


def choose_workers(workers: int | None) -> int:
    """Worker processes beside the main one: `workers`, else all cores but one, at least one."""
    return max(1, count_cores() - 1) if workers is None else workers


def limit_threads(image_size: int) -> None:
    """Have torch compute small images on one thread, unless OMP_NUM_THREADS is set.

    At 64 pixels a second thread gains nothing, and while another program holds a core, the threads
    wait for one another: measured, an epoch of 10 s took minutes. This changes the whole process,
    so it is the command line that calls it, not the library.
    """
    if image_size <= 128 and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(1)


def restart_once(stage: Callable[_Given, Result]) -> Callable[_Given, Result]:
    """Call `stage` once more if one of its worker processes died; it goes on from what it saved.

    Raises `WorkerError` if one dies again, and under `torchrun`, where one process cannot go back
    while the others wait for it.
    """

    @wraps(stage)
    def call(*arguments: _Given.args, **options: _Given.kwargs) -> Result:
        try:
            return stage(*arguments, **options)
        except RuntimeError as error:
            if not _is_death(error):
                raise
            _release_frames(error)
            if int(os.environ.get("WORLD_SIZE", 1)) > 1:
                raise WorkerError(_DEATH) from error
        log.warning("kit: a worker process died; continuing from what is saved")
        try:
            return stage(*arguments, **options)
        except RuntimeError as error:
            if not _is_death(error):
                raise
            raise WorkerError(_DEATH) from error

    return call


def _is_death(error: RuntimeError) -> bool:
    """Whether a worker process died.

    For its DataLoader torch raises a bare RuntimeError from a signal handler, wherever the main
    process happens to be: only the text tells it from others.
    """
    by_torch = type(error) is RuntimeError and str(error).startswith("DataLoader worker (pid")
    return by_torch or isinstance(error, BrokenExecutor | WorkerError)


def _release_frames(error: BaseException | None) -> None:
    """Let go of the dead worker's loader, which would report the same death again later."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
