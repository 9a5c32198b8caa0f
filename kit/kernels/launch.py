"""A stage of a notebook on every GPU: in this process, or in one for each by `torchrun`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from kit import pipeline
from kit.files import read_json, write_json
from kit.kernels.inputs import KernelError
from kit.processes import count_cores
from kit.recipes import find_recipe
from kit.runs import prediction
from kit.runs import scoring as combining
from kit.runs.directory import Run
from kit.training.distributed import join_processes, rank
from kit.training.loop import OutOfTime


def run_stage(name: str, **arguments) -> None:
    """Run a stage in this process, or where there are several GPUs in a process for each.

    Raises what the stage raises; from another process as `OutOfTime` or `KernelError`.
    """
    processes = count_processes()
    arguments["workers"] = max(1, count_cores() // processes)
    if processes == 1:
        STAGES[name](**arguments)
        return
    with tempfile.TemporaryDirectory() as scratch:
        outcome = Path(scratch) / "outcome.json"
        options = ["--standalone", f"--nproc_per_node={processes}", "-m", "kit.kernels.launch"]
        command = [sys.executable, "-m", "torch.distributed.run", *options]
        code = _stream([*command, name, json.dumps(arguments), str(outcome)])
        if outcome.exists():
            ending = read_json(outcome)
            raise (OutOfTime if ending["out_of_time"] else KernelError)(ending["reason"])
    if code:
        raise KernelError(f"A process of the stage {name} ended with exit code {code}.")


def count_processes() -> int:
    """A process for each GPU; one without."""
    return max(1, torch.cuda.device_count())


def main(name: str, arguments: str, outcome: str) -> int:
    """One process of `run_stage`; what stopped it goes to the file `outcome`."""
    with join_processes():
        try:
            STAGES[name](**json.loads(arguments))
            return 0
        except OutOfTime as stop:
            # The first process may still be saving, and the end of one is the end of all.
            if rank() != 0:
                _wait_for(Path(outcome), 300)
            _leave(Path(outcome), True, str(stop))
        except (OSError, ValueError, RuntimeError) as error:
            _leave(Path(outcome), False, str(error))


def _leave(outcome: Path, out_of_time: bool, reason: str) -> NoReturn:
    """Note the first reason and end at once: an orderly end would wait for the other processes."""
    if not outcome.exists():
        write_json(outcome, {"out_of_time": out_of_time, "reason": reason})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _predict(data: str, run: str, out: str, prior: list[float], workers: int) -> None:
    prediction.predict_competition(
        Path(data), Run(Path(run)), Path(out), np.array(prior), workers=workers
    )


def _train_classifier(run, fold, seconds, data, recipe, changes, workers) -> None:
    deadline, run = time.monotonic() + seconds, Run(Path(run))
    changes["train_folds"] = tuple(changes["train_folds"])  # JSON knows lists alone
    pipeline.index(Path(data), find_recipe(recipe, changes), run, workers=workers)
    pipeline.fit_classifier(run, fold, workers=workers, deadline=deadline)
    pipeline.embed(run, fold, workers=workers, deadline=deadline)


def _train_lstm(run, fold, seconds, workers) -> None:
    run = Run(Path(run))
    pipeline.fit_lstm(run, fold, deadline=time.monotonic() + seconds)
    combining.combine(run)
    pipeline.report(run)


STAGES = {
    "predict": _predict,
    "train-classifier": _train_classifier,
    "train-lstm": _train_lstm,
}


def _stream(command: list[str]) -> int:
    """Run a command, its output in the notebook; the exit code."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
    return process.returncode


def _wait_for(path: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
