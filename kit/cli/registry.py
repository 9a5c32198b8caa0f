"""What a command is, and the arguments that several share; imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_AddArgument = Callable[[argparse.ArgumentParser], object]


@dataclass(frozen=True)
class Result:
    """What a command prints: `text` for people or, with --json, `value` as one document."""

    text: str
    value: Any


_Execute = Callable[[argparse.Namespace], Result | None]


@dataclass(frozen=True)
class Command:
    """One command: a line of help, its arguments, and the function that carries it out."""

    help: str
    arguments: tuple[_AddArgument, ...]
    execute: _Execute


def command(
    table: dict[str, Command], name: str, help: str, *arguments: _AddArgument
) -> Callable[[_Execute], _Execute]:
    """Enter the decorated function into `table` as `kit NAME`.

    It is called with the parsed options, and imports what it needs only then: `kit --help` must
    not wait for torch.
    """

    def enter(execute: _Execute) -> _Execute:
        table[name] = Command(help, arguments, execute)
        return execute

    return enter


def argument(*names: str, **how: Any) -> _AddArgument:
    """An argument as `ArgumentParser.add_argument` takes it, to be added to the chosen command."""
    return lambda parser: parser.add_argument(*names, **how)


def parse_run(text: str) -> Any:
    """A run directory, the `type` of an argument."""
    from kit.runs.directory import Run

    return Run(Path(text))


RUN = argument("run", type=parse_run, help="the run directory")
RUN_FLAG = argument("--run", type=parse_run, required=True, help="the run directory")
WORKERS = argument(
    "--workers", type=int, help="number of worker processes (default: CPU cores - 1)"
)
HOURS = argument(
    "--hours",
    type=float,
    help="stop within this time with everything saved and exit with code 3; "
    "the same command continues",
)
