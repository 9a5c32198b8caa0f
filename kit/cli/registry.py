"""A table of commands, and the arguments that several of them share; imports nothing heavy."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Result(NamedTuple):
    """What a command prints: `text` for people or, with --json, `value` as one document."""

    text: str
    value: Any


_AddArgument = Callable[[argparse.ArgumentParser], Any]
_Execute = Callable[[argparse.Namespace], Result | None]


class Command(NamedTuple):
    """A line of help, what adds the arguments to a parser, and what carries the command out."""

    help: str
    arguments: tuple[_AddArgument, ...]
    execute: _Execute


class Commands(dict[str, Command]):
    """Commands by their names, in the order of the help."""

    def add(self, name: str, help: str, *arguments: _AddArgument) -> Callable[[_Execute], _Execute]:
        """Enter the decorated function as `kit NAME`; it is called with the parsed options.

        It imports what it needs when it is called: `kit --help` must not wait for torch.
        """

        def enter(execute: _Execute) -> _Execute:
            self[name] = Command(help, arguments, execute)
            return execute

        return enter


def argument(*names: str, **how: Any) -> _AddArgument:
    """An argument as `ArgumentParser.add_argument` takes it, for the command that is chosen."""
    return lambda parser: parser.add_argument(*names, **how)


def parse_run(text: str) -> Any:
    """A run directory, as the `type` of an argument."""
    from kit.runs.directory import Run

    return Run(Path(text))


def parse_time(text: str) -> float:
    """Hours or seconds, as the `type` of an argument: a wait must end."""
    time = float(text)
    if not 0 <= time < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no time")
    return time


def parse_length(text: str) -> float:
    """Millimetres of a head, as the `type` of an argument."""
    length = float(text)
    if not 0 <= length <= 100:
        raise argparse.ArgumentTypeError(f"{text} mm is not a part of a head")
    return length


def require_data(path: Path) -> None:
    """Raise `FileNotFoundError` where nothing is at `path`: at once, before torch is loaded."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such folder or zip archive")


def require_runs(*runs: Any) -> None:
    """Raise `RunError` where one of them is none, before torch is loaded."""
    from kit.runs.directory import read_recipe

    for run in runs:
        read_recipe(run)


def _parse_workers(text: str) -> int:
    workers = int(text)
    if not 0 <= workers <= 1024:
        raise argparse.ArgumentTypeError(f"{text} is not a number of processes")
    return workers


DATA = argument("data", type=Path, help="the folder or zip of the competition")
RUN = argument("run", type=parse_run, help="the run directory")
RUN_FLAG = argument("--run", type=parse_run, required=True, help="the run directory")
WORKERS = argument(
    "--workers",
    type=_parse_workers,
    help="worker processes on this machine (default: CPU cores - 1)",
)
OVERWRITE = argument("--overwrite", action="store_true", help="replace --out if it is there")
HOURS = argument(
    "--hours",
    type=parse_time,
    help="stop in time, saved, with exit code 3; the same command continues",
)
