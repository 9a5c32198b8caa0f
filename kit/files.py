"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a place beside `path` to write to; in the end it is moved to `path`.

    Where writing fails, what was written is removed and an earlier `path` stays as it was. An
    `OSError` then names `path`, not the place beside it.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with naming(path, part):
            yield part
            # On the disk before it has its name: power may fail, and some disks complain only now.
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):  # a disk that takes nothing lets nothing be removed
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path, *others: Path) -> Iterator[None]:
    """Let an `OSError` that names no file, or one of `others`, name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and Path(error.filename) not in others:
            raise
        if error.errno is None:
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
