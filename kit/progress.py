"""Progress bars: one look for every long stage."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

quiet = False  # set by the command line's --quiet


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
