"""What each stage of a run costs, in `timings.json`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from kit import progress
from kit.files import write_json
from kit.runs.directory import Run, RunError, change_tables, lock_part, read_document
from kit.training.distributed import choose_device, rank, world_size

_COSTS = ("seconds", "processor_seconds", "gpu_seconds")


def read_timings(run: Run) -> dict[str, dict[str, float]]:
    """Read what each stage has cost so far. Raises `RunError` where kit did not write it."""
    timings = read_document(run.timings) if run.timings.exists() else {}
    for stage, cost in timings.items():
        numbers = [cost.get(name) for name in _COSTS] if isinstance(cost, dict) else [None]
        if not all(isinstance(number, int | float) for number in numbers):
            raise RunError(f"{run.timings}: not the costs of {stage!r}; move the file away")
    return timings


@contextlib.contextmanager
def time_stage(run: Run, stage: str, writes: Path) -> Iterator[None]:
    """Announce where a stage writes, keep others out, add what it costs to `timings.json`.

    Costs are wall-clock seconds, processor seconds (of the first process and the workers it has
    waited for) and GPU seconds.
    """
    clock, processors = time.monotonic(), _processor_seconds()
    try:
        with lock_part(run, writes) if rank() == 0 else contextlib.nullcontext():
            if rank() == 0:
                progress.announce(f"{stage} → {writes}")
            yield
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk is reported by what failed first
            _add_cost(run, stage, clock, processors)
        raise
    _add_cost(run, stage, clock, processors)


def _processor_seconds() -> float:
    """Read the processor time of this process and of those it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _add_cost(run: Run, stage: str, clock: float, processors: float) -> None:
    """Add what was spent since the readings `clock` and `processors`."""
    if rank() == 0:
        seconds = time.monotonic() - clock
        cost = {
            "seconds": seconds,
            "processor_seconds": _processor_seconds() - processors,
            "gpu_seconds": seconds * (choose_device().type == "cuda") * world_size(),
        }
        with change_tables(run):
            timings = read_timings(run)
            before = timings.get(stage, dict.fromkeys(cost, 0.0))
            timings[stage] = {name: round(before[name] + value, 2) for name, value in cost.items()}
            write_json(run.timings, timings)
