"""What a person sees while kit works: progress bars and messages in one form for every stage."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeVar, cast

from tqdm import tqdm

from kit import escape_controls

_Item = TypeVar("_Item")

quiet = False  # set by the command line's --quiet
_describe: Callable[[], str] | None = None  # set by `announce_with_bars`
log = logging.getLogger("kit")


class _Printer(logging.Handler):
    """Prints warnings to the present `sys.stderr` and everything else to `sys.stdout`."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        text = escape_controls(self.format(record), keep="\n\t")
        print(text, file=_Lenient(stream), flush=True)


class _Lenient:
    """A stream whose failure stops nothing: hours of work count more than what is shown of it."""

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self.stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def show_messages() -> None:
    """Print the messages of kit's functions in this process; for the command line and notebooks.

    Without this call they only go to the logger `kit`, whose handlers are the caller's choice.
    """
    log.setLevel(logging.INFO)
    if not any(isinstance(handler, _Printer) for handler in log.handlers):
        log.addHandler(_Printer())


def track(
    items: Iterable[_Item],
    description: str,
    total: int | None = None,
    unit: str = "it",
    done: int = 0,
) -> Iterator[_Item]:
    """Iterate with a bar on stderr that shows the rate and the time left.

    `done` of the `total` items were finished before this call.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with open_bar(description, total, unit, done) as bar:
        for item in items:
            yield item
            bar.update()


def open_bar(description: str, total: int | None, unit: str = "it", done: int = 0) -> tqdm:
    """Open a bar that the caller updates; in a log file it prints a line every half minute."""
    if _describe is not None:
        announce(_describe())
    live = sys.stderr.isatty()
    return tqdm(
        desc=description,
        file=cast(Any, _Lenient(sys.stderr)),
        total=total,
        initial=done,
        unit=unit,
        disable=quiet,
        ncols=80,
        mininterval=0.2 if live else 30,
        maxinterval=30,
        bar_format=None if live else "{l_bar}{bar}{r_bar}\n",
    )


@contextlib.contextmanager
def announce_with_bars(describe: Callable[[], str]) -> Iterator[None]:
    """Within, announce what `describe` returns whenever a bar opens: at every epoch, say."""
    global _describe
    before, _describe = _describe, describe
    try:
        yield
    finally:
        _describe = before


def announce(text: str) -> None:
    """Print a line where the bars are drawn, unless `quiet`."""
    if not quiet:
        text = escape_controls(text, keep="\n\t")
        tqdm.write(text, file=cast(Any, _Lenient(sys.stderr)))


def format_count(number: int, noun: str) -> str:
    """`1 slice`, `2 slices`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def format_duration(seconds: float) -> str:
    """`2 h 10 min`, `9 min`, `40 s`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
