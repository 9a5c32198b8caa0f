"""How many cores there are; worker processes that die, starve or are interrupted."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from functools import wraps
from types import FrameType
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


class ScarcityError(KitError, RuntimeError):
    """The machine lacks what worker processes need; the text says what and what to do."""


# By the number of the system's error: what is lacking, and what to do.
_FEWER = "use fewer --workers, or --workers 0"
_LACKS = {
    errno.ENOSPC: "shared memory (/dev/shm) is full: use --workers 0, or give more of it, as by "
    "docker run --shm-size=1g",
    errno.EMFILE: f"too many files are open: raise the limit (ulimit -n 4096), or {_FEWER}",
    errno.ENFILE: f"too many files are open on this machine: {_FEWER}",
    errno.ENOMEM: f"there is not enough memory: {_FEWER}",
    errno.EAGAIN: f"no further process can be started: {_FEWER}",
}


def blame_machine(error: Exception) -> None:
    """Raise `ScarcityError` if an error with a file comes of what the machine lacks."""
    cause = error.__cause__
    if isinstance(cause, OSError) and (lack := _find_lack(cause)):
        raise ScarcityError(lack) from error


def _find_lack(error: MemoryError | OSError) -> str | None:
    """What the machine lacks and what to do, if that is what an error says."""
    if isinstance(error, MemoryError):
        return _LACKS[errno.ENOMEM]
    if error.errno == errno.ENOSPC and error.filename:
        return None  # that is a disk
    return _LACKS.get(error.errno or 0)


@contextlib.contextmanager
def explain_scarcity() -> Iterator[None]:
    """Raise `ScarcityError` for an error that says what the machine lacks."""
    try:
        yield
    except (MemoryError, OSError) as error:
        if lack := _find_lack(error):
            raise ScarcityError(f"worker processes cannot work: {lack}") from error
        raise


@contextlib.contextmanager
def shield_workers() -> Iterator[None]:
    """Let processes that start in the block never hear of Ctrl-C: they inherit that it is blocked.

    A terminal sends it to all processes. The main one alone is to stop: it ends the others, and a
    worker that stops by itself would be taken for one that died.
    """
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _heed_interrupts() -> Iterator[None]:
    """Let Ctrl-C end the block with KeyboardInterrupt, also where the exception was lost.

    It is lost in a callback of another library, or becomes another error on its way.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        pressed.set()
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if pressed.is_set():
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed.is_set():
        raise KeyboardInterrupt


def count_cores() -> int:
    """The cores that this process may use, by its affinity and its container's CPU quota."""
    from joblib import cpu_count

    return cpu_count()


def choose_workers(workers: int | None) -> int:
    """How many worker processes this process has for itself.

    `workers` are those of the whole machine, by default a core each beside the main processes; the
    processes that `torchrun` started on it share them, at least one each.
    """
    if workers == 0:
        return 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, (count_cores() - processes if workers is None else workers) // processes)


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
            with _heed_interrupts():
                return stage(*arguments, **options)
        except RuntimeError as error:
            if not _is_death(error):
                raise
            _release_frames(error)
            if int(os.environ.get("WORLD_SIZE", 1)) > 1:
                raise WorkerError(_DEATH) from error
        log.warning("kit: a worker process died; continuing from what is saved")
        try:
            with _heed_interrupts():
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
