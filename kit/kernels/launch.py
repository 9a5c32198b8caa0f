"""A command of kit in a process for each GPU, its output in the notebook."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from kit.kernels.inputs import KernelError
from kit.processes.ending import ENDING, describe_death, read_ending
from kit.training.loop import OutOfTime


def run_command(*words: str, processes: int = 1) -> None:
    """Run `kit WORDS` in some processes and print what they print.

    Raises `OutOfTime` if the command stopped in time, and `KernelError` with its sentence if it
    failed.
    """
    module = ["kit.cli.launch", str(processes)] if processes > 1 else ["kit"]
    command = [sys.executable, "-m", *module, *words]
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "ending.json"
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, ENDING: str(note)},
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
        code, reason = read_ending(note) or (process.returncode, "")
    if code < 0:
        code, reason = describe_death(words[0], -code)
    if code == OutOfTime.exit_code:
        raise OutOfTime(reason or f"kit {words[0]} stopped in time")
    if code:
        raise KernelError(reason or f"kit {words[0]} ended with exit code {code}.")


def count_processes() -> int:
    """One process for each GPU; one without a GPU. `KIT_PROCESSES` is another number."""
    return int(os.environ.get("KIT_PROCESSES", max(1, torch.cuda.device_count())))
