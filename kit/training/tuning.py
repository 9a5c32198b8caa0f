"""What of a model's speed depends on the card: layout, cuDNN's search, compilation. By timing.

On a Hopper card convolutions in half precision are 1.8 times as fast with channels last; on older
ones grouped convolutions were once reported to be 35 times slower so
(https://github.com/pytorch/pytorch/issues/34977). So each is tried on the card at hand.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from kit.progress import log

# Seconds that a stage must last: trials take some, compiling a minute.
WORTH_TRIALS = 120.0
WORTH_COMPILING = 600.0

# What a trial may fail by, besides too little memory: compiling needs a C compiler and Triton.
_FAILURES = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)


@dataclass(frozen=True)
class Tuning:
    """How a model computes: the layout of its convolutions, cuDNN's search, `torch.compile`."""

    channels_last: bool = True
    benchmark: bool = False
    compiled: bool = False

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def __str__(self) -> str:
        layout = "channels last" if self.channels_last else "contiguous"
        flags = ", cudnn.benchmark" * self.benchmark + ", compiled" * self.compiled
        return layout + flags


def choose_tuning(
    measure: Callable[[Tuning], float], batches: int
) -> tuple[Tuning, dict[str, float]]:
    """The fastest way for so many batches, and milliseconds a batch of each way tried.

    `measure` returns the seconds that a batch takes in a way, as `time_batches` tells them, and
    leaves nothing changed. The layouts, with cuDNN's search and without, are tried if the batches
    take over `WORTH_TRIALS` seconds, and the faster one compiled if they then still take over
    `WORTH_COMPILING`. A way that fails, for want of memory or of a compiler, is passed over.
    """
    first = Tuning()
    times = {first: measure(first)}

    def try_out(tuning: Tuning) -> None:
        try:
            times[tuning] = measure(tuning)
        except _FAILURES as error:
            reason = str(error).partition("\n")[0]
            log.info(f"Not used, because it fails here: {tuning} ({reason})")

    if times[first] * batches > WORTH_TRIALS:
        for tuning in (Tuning(False), Tuning(True, True), Tuning(False, True)):
            try_out(tuning)
    best = min(times, key=times.__getitem__)
    if times[best] * batches > WORTH_COMPILING:
        try_out(replace(best, compiled=True))
    noted = {str(tuning): round(1000 * seconds, 2) for tuning, seconds in times.items()}
    return min(times, key=times.__getitem__), noted


def time_batches(step: Callable[[], object], device: torch.device, calls: int = 5) -> float:
    """Seconds per call of `step`, which works on `device`, after two calls to warm up."""
    for _ in range(2):
        step()
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(calls):
        step()
    wait()
    return (time.perf_counter() - started) / calls


@contextlib.contextmanager
def search_algorithms(tuning: Tuning) -> Iterator[None]:
    """Let cuDNN search its algorithms in the block if `tuning` says so, and not otherwise."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = tuning.benchmark
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
