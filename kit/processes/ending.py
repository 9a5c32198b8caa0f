"""How a command failed, noted in a file for whoever started it: the first failure counts.

Of several processes the one that fails first is the cause; the others fail or are ended by it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import NamedTuple

from kit import KitError, escape_controls

ENDING = "KIT_ENDING"  # the variable of the environment that names the file


class Ending(NamedTuple):
    """The exit code of a command that failed, and the reason in one sentence."""

    code: int
    reason: str


def describe_failure(error: KitError | OSError) -> Ending:
    """The exit code for an expected error, and its sentence: one line, safe for a terminal.

    Of the system's errors it names file and reason.
    """
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return Ending(1, escape_controls(f"{error.filename}: {error.strerror}"))
    lines = (line.strip() for line in str(error).split("\n"))
    text = escape_controls(" ".join(line for line in lines if line), keep="\t")
    return Ending(getattr(error, "exit_code", 1), text)


def describe_death(command: str, number: int) -> Ending:
    """The ending of a command that the signal `number` ended."""
    cause = ": the memory was probably full" if number == signal.SIGKILL else ""
    return Ending(1, f"kit {command} was killed by signal {number}{cause}.")


def note_ending(ending: Ending) -> bool:
    """Note a failure unless an earlier one is noted; return whether this one says something new.

    Nothing is written where nobody has named a file.
    """
    place = os.environ.get(ENDING)
    if not place:
        return True
    part = Path(f"{place}.{os.getpid()}")
    try:
        part.write_text(json.dumps(ending), encoding="utf-8")
        os.link(part, place)  # whole, and only where there is none
        return True
    except FileExistsError:
        return read_ending(place) != ending
    except OSError:  # a full disk: the exit code tells
        return True
    finally:
        part.unlink(missing_ok=True)


def read_ending(place: str | Path) -> Ending | None:
    """Read what was noted first; None where no failure was."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        code, reason = json.loads(Path(place).read_text(encoding="utf-8"))
        return Ending(int(code), str(reason))
    return None
