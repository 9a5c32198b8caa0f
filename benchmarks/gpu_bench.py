"""What the rows of `gpu.py` have in common: settings, a line of the table, time and memory."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from kit.training.tuning import time_batches


@dataclass
class Line:
    """One line of the table: items per second, operations per item, peak bytes, a remark."""

    rate: float
    unit: str
    operations: float = 0.0
    peak: int = 0
    note: str = ""


@dataclass
class Bench:
    """What is measured, how much of it, and where; `quick` amounts run anywhere in a minute."""

    device: torch.device
    folder: Path
    architecture: str = "resnext101_32x8d"
    image: int = 480
    smaller: tuple[int, ...] = (256, 320, 384)
    batch: int = 64
    hidden: tuple[int, ...] = (2048, 1024)
    matrix: int = 8192
    steps: int = 10
    files: int = 8192
    workers: int = 16
    memory: float = 15.0
    lines: dict[str, Line] = field(default_factory=dict)

    @property
    def half(self) -> torch.dtype:
        """The half precision of the kit's O1."""
        return torch.float16 if self.device.type == "cuda" else torch.bfloat16


def quicken(bench: Bench) -> Bench:
    bench.architecture, bench.image, bench.smaller, bench.batch = "resnet10t", 32, (24,), 4
    bench.hidden, bench.matrix, bench.steps, bench.files, bench.workers = (16,), 64, 1, 24, 1
    return bench


def free_memory(device: torch.device) -> None:
    """Free what the last row held, so that the next is measured on its own."""
    torch._dynamo.reset()  # otherwise it keeps the compiled model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def read_peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


@contextlib.contextmanager
def watch_calls(owner: type, name: str) -> Iterator[list[float]]:
    """The times at which a method returned, while the block lasts."""
    times: list[float] = []
    method = getattr(owner, name)

    def watched(*arguments, **options):
        result = method(*arguments, **options)
        times.append(time.perf_counter())
        return result

    setattr(owner, name, watched)
    try:
        yield times
    finally:
        setattr(owner, name, method)


def count_rate(times: list[float], items: int) -> float:
    """Items per second of calls of so many items, without the first quarter: readers start."""
    times = times[len(times) // 4 :]
    return items * (len(times) - 1) / (times[-1] - times[0])


def measure_matrix(bench: Bench) -> Line:
    """Operations per second of a large square matrix product."""
    left, right = (
        torch.randn(bench.matrix, bench.matrix, device=bench.device, dtype=bench.half) for _ in "ab"
    )
    seconds = time_batches(lambda: left @ right, bench.device, 20)
    return Line(2 * bench.matrix**3 / seconds / 1e12, "TFLOPS")
