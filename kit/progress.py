"""What a person sees while kit works: progress bars and messages, one look for every long stage."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

quiet = False  # set by the command line's --quiet
log = logging.getLogger("kit")


class _Printer(logging.Handler):
    """Prints where `print` would print now: warnings to stderr, the rest to stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        print(self.format(record), file=stream, flush=True)


def show_messages() -> None:
    """Have this process print what kit's functions say; for the command line and notebooks.

    Without it their messages go to the logger `kit`, for the caller to show or to drop.
    """
    log.setLevel(logging.INFO)
    if not any(isinstance(handler, _Printer) for handler in log.handlers):
        log.addHandler(_Printer())


def track(
    items: Iterable[Item],
    description: str,
    total: int | None = None,
    unit: str = "it",
    done: int = 0,
) -> Iterator[Item]:
    """Iterate with a bar on stderr: rate and time left. `done` of `total` were done before."""
    with open_bar(description, total or _length(items), unit, done) as bar:
        for item in items:
            yield item
            bar.update()


def open_bar(description: str, total: int | None, unit: str = "it", done: int = 0) -> tqdm:
    """A bar to be updated by hand; in a log file, a line every half minute."""
    live = sys.stderr.isatty()
    return tqdm(
        desc=description,
        total=total,
        initial=done,
        unit=unit,
        disable=quiet,
        ncols=80,
        mininterval=0.2 if live else 30,
        maxinterval=30,
        bar_format=None if live else "{l_bar}{bar}{r_bar}\n",
    )


def _length(items) -> int | None:
    return len(items) if hasattr(items, "__len__") else None
