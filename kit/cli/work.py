"""Work on a run: its lock, the processes of `torchrun`, its plan, its hours."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from kit import InputError
from kit.cli.registry import require_data


def read_new(options: argparse.Namespace) -> Any:
    """The recipe of the command line, before torch is loaded; the data must be there."""
    from kit.cli.flags import asks_for_size, read_recipe

    recipe = read_recipe(options)
    require_data(options.data)
    begun = "run" in options and options.run.config.exists()
    if asks_for_size(options) and options.hours is None and not begun:
        raise InputError("--classifier-image-size auto needs --hours, which the run is to end in")
    return recipe


@contextlib.contextmanager
def begin_work(
    options: argparse.Namespace, recipe: Any, processes: int | None = None
) -> Iterator[Any]:
    """As `work_on`, for a run that may be new; yield its recipe. With hours, plan it first.

    The plan is one for `processes`, or by default for all GPUs.
    """
    from kit.cli.flags import asks_for_size
    from kit.processes import limit_threads
    from kit.runs.directory import lock_run
    from kit.runs.left import show_left
    from kit.runs.plan import find_machine, note_plan, settle_size
    from kit.training.distributed import join_processes

    run, auto = options.run, asks_for_size(options)
    limit_threads(recipe.classifier.image_size)
    with lock_run(run, new=True):
        # The first process measures alone, before the others join it.
        if options.hours is not None and int(os.environ.get("RANK", 0)) == 0:
            machine = find_machine(options.workers, processes)
            note_plan(run, options.data, recipe, options.hours, machine, auto)
        with join_processes(), show_left(run):
            yield settle_size(run, recipe, auto)


@contextlib.contextmanager
def work_on(run: Any, lock: bool = True) -> Iterator[None]:
    """Lock a run directory, join the processes of `torchrun`, choose the number of threads.

    Without `lock` the stage locks the outputs that it writes, and others may go on beside it.
    """
    from kit.processes import limit_threads
    from kit.runs.directory import lock_run, read_recipe
    from kit.runs.left import show_left
    from kit.training.distributed import join_processes

    locked = lock_run(run) if lock else contextlib.nullcontext()
    with locked, join_processes(), show_left(run):
        limit_threads(read_recipe(run).classifier.image_size)
        yield


def set_deadline(hours: float | None) -> float | None:
    """The reading of `time.monotonic` when the time is over."""
    return None if hours is None else time.monotonic() + hours * 3600
