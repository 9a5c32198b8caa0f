"""The command line: `kit COMMAND`. No logic; every command calls a function of another room."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from contextlib import redirect_stdout
from functools import partial

import kit
from kit import KitError, progress
from kit.cli import evaluation, joint, kaggle, models, scans, stages
from kit.processes.ending import Ending, describe_failure, note_ending

_DESCRIPTION = """\
Intracranial hemorrhage on head CT, slice by slice: the 2nd-place solution of
the RSNA competition (2019) as a tool. Not a medical device.

Try it:      kit phantom demo/data --patients 240 --size 64
             kit run demo/data --recipe demo --run demo/run
Your scans:  kit predict SCANS --run demo/run --out predictions.csv
Kaggle:      kit submit demo/run/submission.csv --message "first try" --dry-run
"""

_EXIT_CODES = """\
Exit codes: 0 done, 1 error, 2 wrong usage, 3 stopped in time (--hours), 130
interrupted. After 3 and 130 the same command continues from what is saved.
"""
_INTERRUPTED = Ending(130, "interrupted; the same command continues from what is saved")
_BUG = (
    f"This is a bug in kit {kit.__version__}. Please report it with this traceback, the command "
    "and the output of `kit --version`; remove the names of patients first."
)

COMMANDS = {
    **stages.COMMANDS,
    **joint.COMMANDS,
    **models.COMMANDS,
    **scans.COMMANDS,
    **evaluation.COMMANDS,
    **kaggle.COMMANDS,
}  # in the order of the help


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of an argument where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default is None or action.default is False or action.default == []
        return action.help if nothing else super()._get_help_string(action)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code, as `_EXIT_CODES` lists them."""
    _open_closed_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser(arguments)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # by the command's own usage, which says what it takes
        getattr(options, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if not hasattr(options, "execute"):
        parser.print_help()
        return 2
    try:
        _execute(options)
        return 0
    except KeyboardInterrupt:
        return _tell_failure(_INTERRUPTED)
    except (KitError, OSError) as error:
        if options.traceback:
            traceback.print_exception(error)
        return _tell_failure(describe_failure(error))
    except Exception as error:
        error.add_note(_BUG)  # printed below the traceback
        raise


def make_parser(arguments: list[str]) -> argparse.ArgumentParser:
    """The parser; only the flags of the chosen command are built, because some need torch."""
    parser = argparse.ArgumentParser(
        prog="kit",
        description=_DESCRIPTION,
        epilog=_EXIT_CODES,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=22),
    )
    parser.add_argument("--version", action="version", version=f"kit {kit.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        description = command.help[0].upper() + command.help[1:] + "."
        own = commands.add_parser(
            name, help=command.help, description=description, formatter_class=_Formatter
        )
        own.set_defaults(execute=command.execute, parser=own)
        if name == chosen:
            for add_argument in command.arguments:
                add_argument(own)
            own.add_argument("--quiet", action="store_true", help="show no progress bars")
            own.add_argument("--json", action="store_true", help="print the result as JSON")
            own.add_argument(
                "--traceback", action="store_true", help="show where in the code an error arose"
            )
    return parser


def _execute(options: argparse.Namespace) -> None:
    """Call the command, then print its result."""
    progress.quiet = options.quiet
    progress.show_messages()
    # With --json, stdout is for the document alone: messages go to stderr.
    with redirect_stdout(sys.stderr if options.json else sys.stdout):
        result = options.execute(options)
    speaks = os.environ.get("RANK", "0") == "0"  # one of torchrun's processes speaks for all
    if speaks and options.json:
        _print(json.dumps(result.value if result else {}))
    elif speaks and result and result.text:
        _print(result.text)


def _open_closed_streams() -> None:
    """Put a sink in the place of closed standard streams: the next file opened would be one."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number, this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError as error:
        if sys.stdout is sys.__stdout__:  # else Python would try, and fail, once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise KitError(f"standard output: {error.strerror}; the work itself is done") from error


def _tell_failure(ending: Ending) -> int:
    """Note and print a failure, which the exit code alone tells where stderr is full; return it.

    Processes of a launcher that fail alike, as those that stop in time, say so once.
    """
    if note_ending(ending):
        with contextlib.suppress(OSError):  # at one go: other processes print too
            print(f"kit: {ending.reason}\n", end="", file=sys.stderr, flush=True)
    return ending.code
