"""A command of kit in a process for each GPU, its output in the notebook."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from kit.cli.launch import describe_death
from kit.kernels.inputs import KernelError
from kit.training.loop import OutOfTime


def run_command(*words: str, processes: int = 1) -> None:
    """Run `kit WORDS` in some processes and print what they print.

    Raises `OutOfTime` if the command stopped in time, and `KernelError` with its sentence if it
    failed.
    """
    module = ["kit.cli.launch", str(processes)] if processes > 1 else ["kit"]
    command = [sys.executable, "-m", *module, *words]
    reason = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith("kit: "):
                reason = line.removeprefix("kit: ").rstrip()
    if process.returncode == OutOfTime.exit_code:
        raise OutOfTime(reason)
    if process.returncode < 0:
        reason = describe_death(words[0], -process.returncode)
    if process.returncode:
        raise KernelError(reason or f"kit {words[0]} ended with exit code {process.returncode}.")


def count_processes() -> int:
    """One process for each GPU; one without a GPU. `KIT_PROCESSES` is another number."""
    return int(os.environ.get("KIT_PROCESSES", max(1, torch.cuda.device_count())))
